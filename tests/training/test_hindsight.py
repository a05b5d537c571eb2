"""What a run says of its estimate at its end."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from bilinear.experiment.config import SweepConfig
from bilinear.experiment.record import Evaluation, Finished, Job, Progress, Record
from bilinear.training.forecast import hindsight
from bilinear.training.forecast.calibration import Calibration, Curve
from bilinear.training.forecast.hindsight import Hindsight

CELL = SweepConfig(widths=(6, 4))
RATE = 1e9
CURVE = Curve(64, ((1e6, 1e6 / RATE), (1e9, 1e9 / RATE)))


@dataclass
class Clock:
    """Time as the test has it, and what was asked when."""

    now: float = 0.0
    asked: list[float] = field(default_factory=list)
    cached: bool = False
    devices: int = 1
    notes: tuple[str, ...] = ()

    def monotonic(self) -> float:
        return self.now

    def calibrate(self, *_: Any, **__: Any) -> Calibration | None:
        self.asked.append(self.now)
        self.now += 100  # no second of it may count as training
        return Calibration(1, "", {0: [CURVE]}, 1, 0, self.notes, self.devices)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(hindsight, "time", clock)
    monkeypatch.setattr(hindsight, "calibrate", clock.calibrate)
    monkeypatch.setattr(hindsight, "is_cached", lambda *_: clock.cached)
    return clock


def finished(d_hidden: int, config: SweepConfig = CELL) -> Finished:
    return Finished(Job(d_hidden, 0), Record(config), *(torch.zeros(1),) * 3)


def said(clock: Clock, cells: Sequence[SweepConfig], widths: Sequence[int], seconds: float) -> Any:
    after = Hindsight(None, cells)  # type: ignore[arg-type]
    for d in widths:
        after.update(len(cells) - 1, finished(d))
    clock.now += seconds
    return after.line()


def test_a_run_is_held_against_its_estimate(clock: Clock) -> None:
    line = said(clock, [CELL], [2, 1], 60)
    assert "took 60 s" in line
    assert clock.asked == [0]
    one = said(clock, [CELL], [2], 60)
    assert line != one  # what was there from before was not trained


def test_of_a_short_run_nothing_is_said_or_measured(clock: Clock) -> None:
    tiny = SweepConfig(p=5, widths=(2, 1), remainders=())
    assert said(clock, [tiny], [2, 1], 1) is None
    assert clock.asked == []


def test_nothing_trained_nothing_said(clock: Clock) -> None:
    tiny = SweepConfig(p=5, widths=(2, 1), remainders=())
    assert said(clock, [tiny], [], 60) is None
    assert clock.asked == []
    after = Hindsight(None, [tiny])  # type: ignore[arg-type]
    after.update(0, Progress(Job(1, 0), Evaluation(1, 0, 0, 0, 0, 0, 0)))
    clock.now += 60
    assert after.line() is None


@pytest.mark.parametrize(
    ("cells", "cached", "before"),
    [
        (1, False, True),
        (3, False, False),
        (3, True, True),
    ],
)
def test_measured_before_where_that_is_quick_and_worth_it(
    clock: Clock, cells: int, cached: bool, before: bool
) -> None:
    clock.cached = cached
    some = [SweepConfig(p=p, widths=(6, 4)) for p in (64, 66, 68)[:cells]]
    line = said(clock, some, [2], 60)
    assert "took 60 s" in line
    assert clock.asked == ([0] if before else [60])


def test_a_cluster_is_held_against_as_many_devices(clock: Clock) -> None:
    widths = [2] * 40
    alone = said(clock, [CELL], widths, 60)
    clock.devices, clock.notes = 4, ("the cache is full",)
    line, note = said(clock, [CELL], widths, 60).splitlines()
    assert note == "the cache is full"

    def seconds(text: str) -> float:
        return float(text.split()[2])

    assert seconds(line) == pytest.approx(seconds(alone) / 4, rel=0.1)


def test_no_rate_no_line(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hindsight, "calibrate", lambda *_, **__: None)
    assert said(clock, [CELL], [2], 60) is None
