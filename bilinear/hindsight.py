"""How far the estimate of a run was off, told at its end."""

import time
from collections.abc import Sequence

from bilinear.calibration import Calibration, calibrate, is_cached, to_measure
from bilinear.config import SweepConfig
from bilinear.cost import work_of_step
from bilinear.estimate import comparison, estimate
from bilinear.sweep import Resumed
from bilinear.training import Backend, Finished, Progress

# A run that any machine ends in about a second is not worth a measurement.
_WORTH_FLOP = 1e10
# Measuring one curve delays a run by less than a second; more wait until it has ended.
_CURVES_BEFORE = 1


class Hindsight:
    """Calibrates before a run where that is quick, else after it; knows what the run trained."""

    def __init__(self, backend: Backend, cells: Sequence[SweepConfig]) -> None:
        """Start the clock, after a calibration if that is at hand or quick."""
        self._backend, self._cells = backend, cells
        self._trained: list[list[int]] = [[] for _ in cells]
        self._steps_work = 0.0
        self._calibration: Calibration | None = None
        most = sum(cell.steps * work_of_step(cell, d) for cell in cells for d in cell.widths)
        cheap = most > _WORTH_FLOP and len(to_measure(cells)) <= _CURVES_BEFORE
        if is_cached(backend, cells) or cheap:
            self._calibration = calibrate(backend, cells, budget_seconds=1.0)
        self._started = time.monotonic()

    def update(self, index: int, event: Resumed | Progress | Finished) -> None:
        """Take in one event of the cell with this index."""
        if isinstance(event, Finished):
            cell, d = self._cells[index], event.job.d_hidden
            self._trained[index].append(d)
            self._steps_work += event.record.evaluations[-1].step * work_of_step(cell, d)

    def line(self) -> str | None:
        """Compare estimate and time of the models trained by this run; None for a tiny run."""
        seconds = time.monotonic() - self._started
        if not any(self._trained) or self._steps_work < _WORTH_FLOP:
            return None
        calibration = self._calibration or calibrate(self._backend, self._cells)
        if calibration is None:
            return None
        work = zip(self._cells, self._trained, strict=True)
        return comparison(estimate(calibration, work), seconds, calibration.devices)
