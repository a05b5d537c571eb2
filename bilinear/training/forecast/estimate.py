"""How long training takes, told before it does."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bilinear.experiment.config import SweepConfig
from bilinear.training.forecast.calibration import Calibration
from bilinear.training.forecast.expected_steps import expected_steps, known

DEVICES = (1, 8, 64)


@dataclass(frozen=True)
class Load:
    """Models' seconds on one lane of a device: of all together, and of the longest one."""

    total: float = 0.0
    longest: float = 0.0

    def plus(self, seconds: float, models: int) -> "Load":
        """Add models of so many seconds each."""
        if not models:
            return self
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
        counts: dict[int, int] = {}
        for d in widths:
            counts[d] = counts.get(d, 0) + 1
        for d, models in counts.items():
            step = calibration.step_seconds(config, d)
            most = most.plus(config.steps * step, models)
            likely = likely.plus(expected_steps(config, d) * step, models)
    return Estimate(calibration.at_once, most, likely if any_known else None)


def whole(cells: Iterable[SweepConfig]) -> Iterable[tuple[SweepConfig, Sequence[int]]]:
    """Return all models of all cells, as `estimate` takes them."""
    return ((cell, [d for d in cell.widths for _ in cell.seeds]) for cell in cells)


def duration(seconds: float) -> str:
    """Two or three digits, in the unit that fits."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.0f} h" if seconds < 172_800 else f"{seconds / 86_400:,.0f} days"


def comparison(found: Estimate, seconds: float, devices: int = 1) -> str:
    """Say in one line how far the estimate for so many devices was off."""
    about, most = found.about(devices), found.at_most(devices)
    took = f"took {duration(seconds)}"
    if about is None:
        return f"estimated at most {duration(most)}, {took}: {seconds / most:.0%} of it"
    off = seconds / about - 1
    return (
        f"estimated about {duration(about)} (at most {duration(most)}), {took}: "
        f"{abs(off):.0%} {'more' if off > 0 else 'less'}"
    )
