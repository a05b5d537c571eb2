"""How far the estimate of a run was off, told at its end."""

import time
from collections.abc import Sequence

from bilinear.experiment.config import SweepConfig
from bilinear.experiment.cost import work_of_step
from bilinear.experiment.record import Finished, Progress
from bilinear.training.backend import Backend
from bilinear.training.forecast.calibration import Calibration, calibrate, is_cached, to_measure
from bilinear.training.forecast.estimate import comparison, estimate
from bilinear.training.run import Resumed

# A measurement before the run must be little beside it: this much may take seconds.
_WORTH_FLOP = 3e11
# Of a shorter run, starting takes a good part, and no estimate counts that.
_WORTH_SECONDS = 5.0
# Measuring one curve delays a run by less than a second; more wait until it has ended.
_CURVES_BEFORE = 1


class Hindsight:
    """Calibrates before a run where that is quick, else after it; knows what the run trained."""

    def __init__(self, backend: Backend, cells: Sequence[SweepConfig]) -> None:
        """Start the clock, after a calibration if that is at hand or quick."""
        self._backend, self._cells = backend, cells
        self._trained: list[list[int]] = [[] for _ in cells]
        self._calibration: Calibration | None = None
        most = sum(cell.steps * work_of_step(cell, d) for cell in cells for d, _ in cell.jobs)
        cheap = most > _WORTH_FLOP and len(to_measure(cells)) <= _CURVES_BEFORE
        if is_cached(backend, cells) or cheap:
            self._calibration = calibrate(backend, cells, budget_seconds=1.0)
        self._started = time.monotonic()

    def update(self, index: int, event: Resumed | Progress | Finished) -> None:
        """Take in one event of the cell with this index."""
        if isinstance(event, Finished):
            self._trained[index].append(event.job.d_hidden)

    def line(self) -> str | None:
        """Compare estimate and time of the models trained by this run; None for a short run."""
        seconds = time.monotonic() - self._started
        if not any(self._trained) or seconds < _WORTH_SECONDS:
            return None
        calibration = self._calibration or calibrate(self._backend, self._cells)
        if calibration is None:
            return None
        work = zip(self._cells, self._trained, strict=True)
        said = comparison(estimate(calibration, work), seconds, calibration.devices)
        return "\n".join([said, *calibration.notes])
