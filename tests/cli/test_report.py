"""The comparison of a run's time with its estimate, printed at its end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from rich.console import Console

from bilinear.cli import report
from bilinear.cli.progress import SweepState
from bilinear.cli.report import print_hindsight
from bilinear.experiment.config import SweepConfig
from bilinear.training.forecast.calibration import Calibration

CELL = SweepConfig(widths=(6, 4))
RATE = 1e9
POINTS = ((1e6, 1e6 / RATE), (1e9, 1e9 / RATE))


@dataclass
class Measured:
    """Stands in for `calibrate`, and counts its calls."""

    devices: int = 1
    asked: int = 0

    def __call__(self, *_: Any, **__: Any) -> Calibration | None:
        self.asked += 1
        return Calibration(1, "", POINTS, "", self.devices) if self.devices else None


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    found = Measured()
    monkeypatch.setattr(report, "calibrate", found)
    return found


def said(trained: Sequence[Sequence[int]], seconds: float) -> str:
    console = Console(width=100, highlight=False)
    ran = SweepState([CELL] * len(trained))
    ran.trained = [list(widths) for widths in trained]
    with console.capture() as text:
        print_hindsight(console, None, ran, seconds)  # type: ignore[arg-type]
    return text.get()


def test_a_run_is_compared_with_its_estimate(measured: Measured) -> None:
    line = said([[2, 1]], 60)
    assert "took 60 s" in line
    assert line != said([[2]], 60)  # what was there from before was not trained
    assert said([[], [2]], 60) == said([[2]], 60)


def test_a_short_run_prints_and_measures_nothing(measured: Measured) -> None:
    assert said([[2, 1]], 1) == ""
    assert measured.asked == 0


def test_a_run_that_trained_nothing_prints_nothing(measured: Measured) -> None:
    assert said([[], []], 60) == ""
    assert measured.asked == 0


def test_a_cluster_is_compared_with_the_estimate_for_its_devices(measured: Measured) -> None:
    alone = said([[32] * 400], 60)
    measured.devices = 4

    def seconds(text: str) -> float:
        return float(text.split()[2])

    assert seconds(said([[32] * 400], 60)) == pytest.approx(seconds(alone) / 4, rel=0.1)


def test_without_a_rate_nothing_is_printed(measured: Measured) -> None:
    measured.devices = 0
    assert said([[2]], 60) == ""
