"""How long training takes, told before it does."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bilinear.experiment.config import SweepConfig
from bilinear.training.forecast.calibration import Calibration
from bilinear.training.forecast.expected_steps import expected_steps, known


@dataclass(frozen=True)
class Load:
    """Models' seconds on one lane of a device: of all together, and of the longest one."""

    total: float = 0.0
    longest: float = 0.0

    def plus(self, seconds: float, models: int) -> "Load":
        """Add models of so many seconds each."""
        return Load(self.total + models * seconds, max(self.longest, seconds))


@dataclass(frozen=True)
class Estimate:
    """Seconds of training on devices that each train `at_once` models at a time.

    `most` is of models that use all their steps; `likely` of models that stop as those of the
    default recipe did, None if they say nothing of any of these.
    """

    at_once: int
    most: Load
    likely: Load | None

    def at_most(self, devices: int = 1) -> float:
        """Bound of a queue in any order: all but the longest model shared out, then that one.

        (R. L. Graham, Bounds for certain multiprocessing anomalies, 1966.)
        """
        lanes = devices * self.at_once
        return (self.most.total - self.most.longest) / lanes + self.most.longest

    def about(self, devices: int = 1) -> float | None:
        """As long as the shared-out whole, or as the longest model; the queue is longest first."""
        if self.likely is None:
            return None
        return max(self.likely.total / (devices * self.at_once), self.likely.longest)


def estimate(
    calibration: Calibration, work: Iterable[tuple[SweepConfig, Sequence[int]]]
) -> Estimate:
    """Estimate cells, each with the widths of the models to be trained, one entry a model."""
    most, likely, any_known = Load(), Load(), False
    for config, widths in work:
        any_known |= known(config) and bool(widths)
        for d, models in Counter(widths).items():
            step = calibration.step_seconds(config, d)
            most = most.plus(config.most_steps(d) * step, models)
            likely = likely.plus(expected_steps(config, d) * step, models)
    return Estimate(calibration.at_once, most, likely if any_known else None)


def whole(cells: Iterable[SweepConfig]) -> Iterable[tuple[SweepConfig, Sequence[int]]]:
    """Return all models of all cells, as `estimate` takes them."""
    return ((cell, [d for d, _ in cell.jobs]) for cell in cells)
