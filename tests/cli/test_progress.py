"""Progress: counts, rates and bands from events, as lines and as a panel."""

import io

import pytest
from rich.console import Console

from bilinear.cli.progress import Display, SweepState, _panel
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.cost import work_of_step
from bilinear.experiment.record import Finished, Job, Progress, Record, Weights
from bilinear.training.run import Resumed

CONFIG = SweepConfig(p=4, widths=(1, 2, 3, 4), steps=100, hold=1, remainders=())


def finished(job: Job, wrong: int, step: int) -> Finished:
    import torch

    record = Record(CONFIG)
    record.add(step, 0.1, 0.2, 12, 4 - wrong, 1.0 - wrong)
    empty = torch.empty(0)
    return Finished(job, record, Weights(empty, empty, empty))


def test_state_counts_models_steps_and_best_accuracies(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    state = SweepState([CONFIG])
    assert state.left() is None
    state.update(0, Progress(Job(4, 0), Record(CONFIG).add(50, 0.5, 0.5, 12, 0, -1.0)))
    clock[0] += 10
    state.update(0, finished(Job(2, 0), wrong=0, step=60))
    assert (state.done, state.perfect, state.smallest) == (1, 1, 2)
    assert state.steps == 110
    assert state.steps_per_second == pytest.approx(11)
    unit = {d: work_of_step(CONFIG, d) for d in CONFIG.widths}
    spent = 60 * unit[2] + 50 * unit[4]
    rest = 100 * (unit[1] + unit[3]) + 50 * unit[4]
    assert state.left() == (None, pytest.approx(10 * rest / spent))
    assert state.share == pytest.approx(spent / (spent + rest))
    assert [best for *_, best in state.bands()] == [None, 1.0, None, 0.75]
    assert "1/4 models ended, 1 perfect, smallest width 2, 1 in training" in state.line()


def test_resumed_models_count_as_ended_but_not_as_work(monkeypatch: pytest.MonkeyPatch) -> None:
    state = SweepState([CONFIG])
    rows = [finished(Job(d, 0), 0, 40).record.row(Job(d, 0)) for d in (3, 4)]
    state.update(0, Resumed(rows))
    assert (state.done, state.resumed, state.steps, state.smallest) == (2, 2, 0, 3)


def test_plain_lines_in_a_pipe_and_a_panel_on_a_terminal() -> None:
    for terminal in (False, True):
        stream = io.StringIO()
        console = Console(file=stream, force_terminal=terminal, width=100)
        with Display([CONFIG], console) as display:
            display(0, finished(Job(1, 0), wrong=3, step=100))
        text = stream.getvalue()
        assert "1/4 models ended, 0 perfect" in text
        assert ("\x1b[" in text) == terminal
        assert ("81.25 %" in text) == terminal  # best accuracy by width: in the panel only


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_panel_fits_the_terminal_and_keeps_its_digits(width: int) -> None:
    config = SweepConfig()
    state = SweepState([config])
    for d in config.widths:
        evaluation = Record(config).add(500, 0.1, 0.1, 3072, 1000 + d / 2, -1.0)
        state.update(0, Progress(Job(d, 0), evaluation))
    console = Console(width=width, file=io.StringIO())
    console.print(_panel(state, console))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert max(map(len, lines)) <= width
    assert set(lines[0]) <= {"━", "╸", "╺"}
    bands = min(8, width // 10)
    assert len(lines[-2].split()) == bands
    assert lines[-1].count("%") == bands
