"""Estimates how much of a running sweep's work is done, and how long the rest takes."""

from collections import Counter
from collections.abc import Sequence

from bilinear.experiment.config import SweepConfig
from bilinear.training.forecast.calibration import Calibration
from bilinear.training.forecast.estimate import Estimate, Times, course

# Before this the calibration's speed is used, after it the speed of the run itself.
_SETTLED_SECONDS = 2.0


class Remaining:
    """The models of a sweep or study that have not ended.

    Models in training come as (index of their cell, d_hidden, steps taken).
    """

    def __init__(self, cells: Sequence[SweepConfig], rate: Calibration | None) -> None:
        """All of the cells' models are still to be trained."""
        kinds = [(index, d) for index, cell in enumerate(cells) for d in cell.widths]
        self._courses = {(index, d): course(cells[index], d, rate) for index, d in kinds}
        self._open = Counter({(index, d): len(cells[index].seeds) for index, d in kinds})
        self._ended = self._ended_here = self._share = 0.0
        self._rate = rate
        self._lanes = 1 if rate is None else rate.at_once * rate.devices

    def end(self, index: int, d_hidden: int, steps: int, here: bool) -> None:
        """Count a model as ended; `steps` include those of earlier tries that were not kept.

        `here` says whether this run trained it, or an earlier one.
        """
        self._open[index, d_hidden] -= 1
        work = steps * self._courses[index, d_hidden].step
        self._ended += work
        self._ended_here += work if here else 0.0

    def share(self, training: Sequence[tuple[int, int, int]]) -> float:
        """Share of the expected work that is done; it never falls."""
        spent, rest = self._standing(training)
        done = self._ended + spent
        whole = done + rest.likely.total
        self._share = max(self._share, done / whole if whole else 0.0)
        return self._share

    def left(self, training: Sequence[tuple[int, int, int]], seconds: float) -> Times | None:
        """How long the rest takes, of which `seconds` are over; None before that can be known."""
        spent, rest = self._standing(training)
        if self._rate is None:
            self._lanes = max(self._lanes, len(training))
        done = self._ended_here + spent
        if done and seconds > _SETTLED_SECONDS:
            return rest.times(self._lanes, done / seconds / self._lanes)
        return None if self._rate is None else rest.times(self._lanes)

    def _standing(self, training: Sequence[tuple[int, int, int]]) -> tuple[float, Estimate]:
        """Work that models in training have done, and what is left of all models."""
        waiting, rest, spent = self._open.copy(), Estimate(), 0.0
        for index, d, taken in training:
            waiting[index, d] -= 1
            spent += taken * self._courses[index, d].step
            rest.add(self._courses[index, d], taken=taken)
        for kind, models in waiting.items():
            if models:
                rest.add(self._courses[kind], models)
        return spent, rest
