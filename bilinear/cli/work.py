"""How much of a sweep's work is done, and how long the rest takes."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bilinear.experiment.config import SweepConfig
from bilinear.experiment.cost import work_of_step
from bilinear.training.forecast.calibration import Calibration
from bilinear.training.forecast.expected_steps import expected_steps, known

_SETTLED_SECONDS = 2.0


class Left(NamedTuple):
    """Seconds left: `at_most` if no further model stops early, `about` None if nothing says."""

    about: float | None
    at_most: float


class Work:
    """Work in units of one model's step: seconds where the rate is known, else FLOP.

    Models in training come as (cell, d_hidden, steps taken).
    """

    def __init__(self, cells: Sequence[SweepConfig], rate: Calibration | None) -> None:
        """All of the cells' models are still to be trained."""
        self._cells, self._rate = cells, rate
        self._known = any(map(known, cells))
        step = work_of_step if rate is None else rate.step_seconds
        self._unit = [{d: step(cell, d) for d in cell.widths} for cell in cells]
        self._steps = [{d: expected_steps(cell, d) for d in cell.widths} for cell in cells]
        self._open = self._open_most = 0.0
        for index, cell in enumerate(cells):
            for d, unit in self._unit[index].items():
                self._open += len(cell.seeds) * unit * self._steps[index][d]
                self._open_most += len(cell.seeds) * unit * cell.most_steps(d)
        self._ended = self._ended_here = self._shown = 0.0
        self._lanes = 1 if rate is None else rate.at_once * rate.devices

    def end(self, index: int, d_hidden: int, steps: int, here: bool) -> None:
        """Take in that a model ended, with those not kept in its place after so many steps.

        `here` says whether this run trained it, or an earlier one.
        """
        unit = self._unit[index][d_hidden]
        self._open -= unit * self._steps[index][d_hidden]
        self._open_most -= unit * self._cells[index].most_steps(d_hidden)
        self._ended += unit * steps
        self._ended_here += unit * steps if here else 0.0

    def share(self, training: Iterable[tuple[int, int, int]]) -> float:
        """Share of the expected work that is done; it never falls."""
        spent, rest, _ = self._running(training)
        done, left = self._ended + spent, max(0.0, self._open + rest)
        self._shown = max(self._shown, done / (done + left) if done else 0.0)
        return self._shown

    def left(self, training: Sequence[tuple[int, int, int]], seconds: float) -> Left | None:
        """How long the rest takes, of which `seconds` are over; None before that can be known."""
        if self._rate is None:
            self._lanes = max(self._lanes, len(training))
        spent, rest, longest = self._running(training)
        speed = self._speed(self._ended_here + spent, seconds)
        if speed is None:
            return None
        at_most = max(0.0, self._open_most - spent) / speed
        if not self._known:
            return Left(None, at_most)
        about = max((self._open + rest) / speed, longest * self._lanes / speed)
        return Left(min(max(0.0, about), at_most), at_most)

    def _speed(self, spent: float, seconds: float) -> float | None:
        """Work a second: as measured here after a while, as it is known to be before."""
        if spent and seconds > _SETTLED_SECONDS:
            return spent / seconds
        if self._rate is not None:
            return float(self._lanes)
        return spent / seconds if spent and seconds > _SETTLED_SECONDS / 2 else None

    def _running(self, training: Iterable[tuple[int, int, int]]) -> tuple[float, float, float]:
        """Work of models in training: spent, change of what was open, the longest one's rest."""
        spent = change = longest = 0.0
        for index, d, step in training:
            unit, expected = self._unit[index][d], self._steps[index][d]
            # A model that outlives what was expected of it is given half as long again.
            rest = min(self._cells[index].most_steps(d) - step, max(expected - step, step / 2))
            spent += unit * step
            change += unit * (rest - expected)
            longest = max(longest, unit * rest)
        return spent, change, longest
