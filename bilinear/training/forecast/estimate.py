"""How long a queue of models takes: at most, and if models stop when such models were seen to."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from bilinear.experiment.config import SweepConfig
from bilinear.experiment.cost import work_of_step
from bilinear.training.forecast.calibration import Calibration
from bilinear.training.forecast.expected_steps import expected_steps


class Course(NamedTuple):
    """A model's training: the work of a step, its steps at most and its likely steps.

    Work is in seconds if the rate is known, else in FLOP.
    """

    step: float
    most: int
    likely: float


def course(config: SweepConfig, d_hidden: int, rate: Calibration | None) -> Course:
    """Return the course of a model of this config and width."""
    step = work_of_step(config, d_hidden) if rate is None else rate.step_seconds(config, d_hidden)
    return Course(step, config.most_steps(d_hidden), expected_steps(config, d_hidden))


class Times(NamedTuple):
    """Seconds: `at_most` if no model stops early; `about` is None if none is known to."""

    about: float | None
    at_most: float


@dataclass
class Load:
    """Work of models in a queue: of all together, and of the longest one."""

    total: float = 0.0
    longest: float = 0.0

    def add(self, work: float, models: int) -> None:
        """Add models of so much work each."""
        self.total += models * work
        self.longest = max(self.longest, work)


@dataclass
class Estimate:
    """Load of models in a queue: if all take all their steps, and if they stop when expected."""

    most: Load = field(default_factory=Load)
    likely: Load = field(default_factory=Load)

    def add(self, course: Course, models: int = 1, taken: int = 0) -> None:
        """Add models that have taken `taken` steps each.

        After its likely steps, a model is expected to take half as many again as it has taken.
        """
        rest = course.most - taken
        self.most.add(course.step * rest, models)
        self.likely.add(course.step * min(rest, max(course.likely - taken, taken / 2)), models)

    def times(self, lanes: int, speed: float = 1.0) -> Times:
        """Return how long `lanes` take, each of which does `speed` work a second.

        At most, in any order: all other models evenly over the lanes, then the longest (R. L.
        Graham, Bounds for certain multiprocessing anomalies, 1966). About: the longest first.
        """
        at_most = (self.most.total - self.most.longest) / lanes + self.most.longest
        if self.likely == self.most:
            return Times(None, at_most / speed)
        return Times(max(self.likely.total / lanes, self.likely.longest) / speed, at_most / speed)


def estimate(
    rate: Calibration, cells: Sequence[SweepConfig], trained: Sequence[Sequence[int]] | None = None
) -> Estimate:
    """Estimate all models of these cells, or those of the widths `trained`, a list per cell."""
    found = Estimate()
    widths_of = trained or [[d for d, _ in cell.jobs] for cell in cells]
    for config, widths in zip(cells, widths_of, strict=True):
        for d, models in Counter(widths).items():
            found.add(course(config, d, rate), models)
    return found
