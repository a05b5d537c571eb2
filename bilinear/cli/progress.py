"""Shows the progress of a sweep: a live panel on a terminal, else a line every few seconds."""

import time
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bilinear.cli.durations import duration
from bilinear.cli.remaining import Remaining
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.record import Finished, Job, Progress
from bilinear.training.forecast.calibration import Calibration
from bilinear.training.forecast.estimate import Times
from bilinear.training.run import Resumed

_PLAIN_SECONDS = 5.0
_BANDS = 8
_BAND_WIDTH = 10


class SweepState:
    """What a sweep or a study has done so far, counted from its events."""

    def __init__(self, cells: Sequence[SweepConfig], rate: Calibration | None = None) -> None:
        """Count from zero; `rate` is how fast models of these cells train, if that is known."""
        self.cells = cells
        self._left = [len(cell.widths) * len(cell.seeds) for cell in cells]
        self.total = sum(self._left)
        self.done = self.perfect = self.resumed = 0
        self.training: dict[tuple[int, Job], int] = {}
        self.best: dict[int, float] = {}
        self.smallest: int | None = None
        self.started = time.monotonic()
        self.remaining = Remaining(cells, rate)
        self.trained: list[list[int]] = [[] for _ in cells]
        self.steps_ended = 0

    def update(self, index: int, event: Resumed | Progress | Finished) -> None:
        """Take in one event of the cell with this index."""
        if isinstance(event, Resumed):
            self.resumed += len(event.rows)
            for row in event.rows:
                self._end(index, Job(row["d_hidden"], row["seed"]), row, here=False)
        elif isinstance(event, Finished):
            self.training.pop((index, event.job), None)
            self._end(index, event.job, event.row, here=True)
        else:
            self.training[index, event.job] = event.evaluation.step
            self._see(event.job.d_hidden, event.evaluation.full_acc)

    def _end(self, index: int, job: Job, row: dict, here: bool) -> None:
        self.done += 1
        self._left[index] -= 1
        self._see(job.d_hidden, row["full_acc"])
        if row["perfect"]:
            self.perfect += 1
            self.smallest = min(job.d_hidden, self.smallest or job.d_hidden)
        # Each earlier try missed the goal, so it took all steps of its config.
        steps = row["steps"] + (row.get("tries", 1) - 1) * self.cells[index].steps
        self.remaining.end(index, job.d_hidden, steps, here)
        if here:
            self.trained[index].append(job.d_hidden)
            self.steps_ended += steps

    def _see(self, d_hidden: int, acc: float) -> None:
        if acc == acc:  # NaN before the end of the notebook's loop: it has not judged all pairs
            self.best[d_hidden] = max(acc, self.best.get(d_hidden, 0.0))

    @property
    def steps(self) -> int:
        """Steps taken by this run, of all models together."""
        return self.steps_ended + sum(self.training.values())

    @property
    def steps_per_second(self) -> float:
        """Their mean rate."""
        return self.steps / max(time.monotonic() - self.started, 1e-9)

    def left(self) -> Times | None:
        """How long the rest takes; None before that can be known."""
        return self.remaining.left(self._in_training(), time.monotonic() - self.started)

    @property
    def share(self) -> float:
        """Share of the expected work that is done, 0 … 1."""
        return self.remaining.share(self._in_training())

    def _in_training(self) -> list[tuple[int, int, int]]:
        return [(index, job.d_hidden, step) for (index, job), step in self.training.items()]

    def bands(self, most: int = _BANDS) -> list[tuple[int, int, float | None]]:
        """(narrowest, widest, best accuracy on all pairs) of up to `most` ranges of width."""
        widths = sorted({d for cell in self.cells for d in cell.widths})
        size = -(-len(widths) // most)
        groups = [widths[i : i + size] for i in range(0, len(widths), size)]
        return [
            (g[0], g[-1], max((self.best[d] for d in g if d in self.best), default=None))
            for g in groups
        ]

    def line(self) -> str:
        """The state in one line of text."""
        parts = [
            f"{self.done}/{self.total} models ended",
            f"{self.perfect} perfect",
            f"smallest width {self.smallest or '—'}",
            f"{len(self.training)} in training",
            f"{self.steps_per_second:,.0f} steps/s",
        ]
        if self.done < self.total:
            parts.append(_in_words(self.left()))
        if len(self.cells) > 1:
            parts.insert(0, f"{self._left.count(0)}/{len(self.cells)} cells")
        return ", ".join(parts)


def _percent(acc: float | None) -> str:
    """`81.25 %`; 100 % only if every pair is right."""
    if acc is None:
        return "—"
    return "100 %" if acc == 1.0 else f"{min(acc, 0.9999):.2%}".replace("%", " %")


def _in_words(left: Times | None) -> str:
    """`about 40 s left (at most 5 min)`."""
    if left is None:
        return "time left not known yet"
    most = duration(left.at_most)
    if left.about is None or duration(left.about) == most:
        return f"at most {most} left"
    return f"about {duration(left.about)} left (at most {most})"


def _panel(state: SweepState, console: Console) -> Group:
    bands = Table(box=None, padding=(0, 2, 0, 0))
    row = state.bands(max(1, min(_BANDS, console.width // _BAND_WIDTH)))
    for narrowest, widest, _ in row:
        name = f"d={narrowest}" if narrowest == widest else f"d={narrowest}…{widest}"
        bands.add_column(name, justify="right", no_wrap=True)
    bands.add_row(*(_percent(best) for *_, best in row))
    bar = Table.grid()  # a ProgressBar alone prints no newline after it
    bar.add_row(ProgressBar(total=1.0, completed=state.share, width=min(60, console.width)))
    return Group(
        bar,
        Text(state.line()),
        Text("best accuracy so far on all pairs:", style="dim"),
        bands,
    )


class Display:
    """Shows the events of a sweep or a study while used as a context manager."""

    def __init__(
        self, cells: Sequence[SweepConfig], console: Console, rate: Calibration | None = None
    ) -> None:
        """Live on a terminal or in a notebook with widgets, else a line every few seconds."""
        self.state, self._console = SweepState(cells, rate), console
        self._live: Live | None = None
        if console.is_terminal or (console.is_jupyter and find_spec("ipywidgets")):
            panel = partial(_panel, self.state, console)
            self._live = Live(console=console, refresh_per_second=5, get_renderable=panel)
        self._shown = time.monotonic()
        self._printed_resumed = False

    def __enter__(self) -> "Display":
        """Start showing."""
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop showing; the last state stays on the screen."""
        self._print_resumed()
        if self._live:
            self._live.stop()
        elif self.state.done or self.state.training:
            self._console.print(self.state.line(), soft_wrap=True)

    def __call__(self, index: int, event: Resumed | Progress | Finished) -> None:
        """Take in and show one event of the cell with this index."""
        self.state.update(index, event)
        if isinstance(event, Resumed):
            for what in event.mended:
                self._console.print(f"mended: {what}", soft_wrap=True, markup=False)
        else:
            self._print_resumed()
        if not self._live and time.monotonic() - self._shown > _PLAIN_SECONDS:
            self._shown = time.monotonic()
            self._console.print(self.state.line(), soft_wrap=True)

    def _print_resumed(self) -> None:
        if self.state.resumed and not self._printed_resumed:
            self._console.print(f"{self.state.resumed} models are there from before")
        self._printed_resumed = True
