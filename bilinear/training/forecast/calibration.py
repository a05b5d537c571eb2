"""How fast a backend trains: seconds a step, measured once and then read from a cache."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bilinear.experiment.config import MOST_STEPS, SweepConfig
from bilinear.experiment.cost import work_of_step
from bilinear.experiment.record import Finished
from bilinear.training.backend import Backend, environment, processor, train
from bilinear.training.forecast import rate_cache
from bilinear.training.forecast.rate_cache import Points

# After this time no further width is measured.
_BUDGET_SECONDS = 2.0
# A shorter timing would mostly be the start and the end of training, so it takes more steps.
_LEAST_SECONDS = 0.02
_TIMINGS = 3
# A single step with its evaluation must fit the budget on any machine.
_LARGEST_STEP_FLOP = 2e9


@dataclass(frozen=True)
class Calibration:
    """How fast models train while their device trains `at_once` of them.

    `points` are (FLOP of a step by `work_of_step`, seconds a step), FLOP rising. The backend has
    `devices` of the kind of `processor`, on which it was measured.
    """

    at_once: int
    processor: str
    points: Points
    source: str
    devices: int = 1

    def step_seconds(self, config: SweepConfig, d_hidden: int) -> float:
        """Seconds a step: linear between the points measured, proportional to work outside."""
        work = work_of_step(config, d_hidden)
        works, seconds = zip(*self.points, strict=True)
        inside = min(max(work, works[0]), works[-1])
        return float(np.interp(inside, works, seconds)) * work / inside


def calibrate(
    backend: Backend, cells: Sequence[SweepConfig], *, measure: bool = True
) -> Calibration | None:
    """Return the rate at which `backend` trains, measured at the largest modulus of these cells.

    Cells of that modulus take most of the time. A rate missing from the user's cache is measured
    and added. Returns None if it is missing and `measure` is false, or if a step takes too long.
    """
    if hasattr(backend, "calibrate"):  # trains on other machines, and measures there
        return backend.calibrate(cells) if measure else None
    cell = max(cells, key=lambda cell: cell.p)
    what = {"p": cell.p, "batch": cell.batch_size, "processor": processor(backend)}
    of_backend = {"reason": backend.reason, "at_once": backend.at_once}
    key = environment(backend) | {name: str(v) for name, v in (what | of_backend).items()}
    points, source = rate_cache.read(key), "measured before"
    if points is None and measure:
        points, source = _measure(backend, cell), "measured now"
        rate_cache.write(key, points)
    return Calibration(backend.at_once, processor(backend), points, source) if points else None


def _measure(backend: Backend, cell: SweepConfig) -> Points:
    """Train a few widths up to p, each with `backend.at_once` models at a time."""
    deadline = time.monotonic() + _BUDGET_SECONDS
    widths = sorted({1, cell.p // 4, cell.p // 2, cell.p} - {0})
    widths = [d for d in widths if work_of_step(cell, d) <= _LARGEST_STEP_FLOP]
    if widths:
        _timed(backend, cell, widths[0], 1)  # loads and compiles the kernels
    points: list[tuple[float, float]] = []
    for d in widths:
        if not points or time.monotonic() < deadline:
            points.append((work_of_step(cell, d), _step_seconds(backend, cell, d, deadline)))
    return tuple(points)


def _step_seconds(backend: Backend, cell: SweepConfig, d_hidden: int, deadline: float) -> float:
    """Median of three timings, as other processes may disturb one; of fewer if steps take long."""
    steps, timings = cell.eval_every, list[float]()
    while not timings or (len(timings) < _TIMINGS and time.monotonic() < deadline):
        taken, seconds = _timed(backend, cell, d_hidden, steps)
        if seconds < _LEAST_SECONDS:
            steps *= 4
        else:
            timings.append(seconds / taken)
    return statistics.median(timings)


def _timed(backend: Backend, cell: SweepConfig, d_hidden: int, steps: int) -> tuple[int, float]:
    """Steps and seconds of training `backend.at_once` models."""
    seeds = tuple(range(backend.at_once))
    # Independent models: the widest of a chain would stop after `widest_steps`.
    config = replace(
        cell, widths=(d_hidden,), seeds=seeds, steps=steps, hold=MOST_STEPS, narrow=None
    )
    start = time.perf_counter()
    ended = [event.record for event in train(backend, config) if isinstance(event, Finished)]
    return ended[0].evaluations[-1].step, time.perf_counter() - start
