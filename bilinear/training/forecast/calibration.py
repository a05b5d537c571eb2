"""How fast a backend trains: seconds a step, measured on that very one and kept in a cache."""

import contextlib
import math
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch

import bilinear
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.cost import work_of_step
from bilinear.experiment.record import Finished, Job
from bilinear.training.backend import Backend, Work
from bilinear.training.forecast import rate_cache
from bilinear.training.forecast.rate_cache import Points

# What a whole calibration may take; a width is measured for _MEASURED_SECONDS of it.
BUDGET_SECONDS = 2.0
_MEASURED_SECONDS = 0.1
_TIMINGS = 3
# Measured are at most so many moduli; the others lie between them.
_MODULI = 4
# A single step with its evaluation must fit the budget on any machine.
_LARGEST_STEP_FLOP = 2e9
_NEVER = 10**8


@dataclass(frozen=True)
class Curve:
    """Seconds a step a model takes at modulus p, while its device trains as many as it does.

    `points` are (work of a step in FLOP, see `work_of_step`; seconds a step), both rising.
    """

    p: int
    points: Points

    def seconds(self, work: float) -> float:
        """Seconds of one step of so much work: between points linear, outside proportional."""
        works, seconds = zip(*self.points, strict=True)
        inside = min(max(work, works[0]), works[-1])
        return float(np.interp(inside, works, seconds)) * work / inside


@dataclass(frozen=True)
class Calibration:
    """Curves by batch size, of a `processor` that trains `at_once` models at a time.

    The backend has `devices` of them. `source` says whether the curves are fresh.
    """

    at_once: int
    processor: str
    curves: dict[int, list[Curve]]
    source: str
    devices: int = 1

    def step_seconds(self, config: SweepConfig, d_hidden: int) -> float:
        """Seconds a step of a model, its share of evaluations included.

        A modulus that was not measured lies between its neighbours, in proportion to log p.
        """
        work = work_of_step(config, d_hidden)
        curves = sorted(self.curves[config.batch_size], key=lambda curve: curve.p)
        moduli = [math.log(curve.p) for curve in curves]
        seconds = [math.log(curve.seconds(work)) for curve in curves]
        return math.exp(np.interp(math.log(config.p), moduli, seconds))


@runtime_checkable
class TrainsElsewhere(Protocol):
    """A backend whose devices are not this machine's: it has them measured where they are."""

    def calibrate(self, cells: Sequence[SweepConfig], budget_seconds: float) -> Calibration | None:
        """As the function `calibrate`, on one of the devices; the cache is the one there."""
        ...


def calibrate(
    backend: Backend, cells: Sequence[SweepConfig], *, budget_seconds: float = BUDGET_SECONDS
) -> Calibration | None:
    """Return the rate at which `backend` trains these cells; None if it takes too long to measure.

    What the user's cache lacks is measured and added to it: a curve for each batch size and
    modulus, up to four moduli.
    """
    if isinstance(backend, TrainsElsewhere):
        return backend.calibrate(cells, budget_seconds)
    deadline = time.monotonic() + budget_seconds
    curves: dict[int, list[Curve]] = {}
    sources: set[str] = set()
    for cell in to_measure(cells):
        points, source = rate_cache.read(_key(backend, cell)), "before"
        if points is None and not ("now" in sources and time.monotonic() > deadline):
            points, source = _measure(backend, cell, deadline), "now"
            if points is not None:
                rate_cache.write(_key(backend, cell), points)
        if points is not None:
            sources.add(source)
            curves.setdefault(cell.batch_size, []).append(Curve(cell.p, points))
    if any(cell.batch_size not in curves for cell in cells):
        return None
    source = f"measured {' and '.join(sorted(sources, reverse=True))}"
    return Calibration(backend.at_once, processor(backend), curves, source)


def remembered(backend: Backend, cells: Sequence[SweepConfig]) -> Calibration | None:
    """As `calibrate`, from the user's cache alone: None if that lacks a curve."""
    if isinstance(backend, TrainsElsewhere):
        return None
    curves: dict[int, list[Curve]] = {}
    for cell in to_measure(cells):
        points = rate_cache.read(_key(backend, cell))
        if points is None:
            return None
        curves.setdefault(cell.batch_size, []).append(Curve(cell.p, points))
    return Calibration(backend.at_once, processor(backend), curves, "measured before")


def to_measure(cells: Sequence[SweepConfig]) -> list[SweepConfig]:
    """One cell a batch size and modulus, smallest modulus first, spread if there are many."""
    distinct = {(cell.batch_size, cell.p): cell for cell in reversed(cells)}
    chosen: list[SweepConfig] = []
    for batch in sorted({batch for batch, _ in distinct}):
        moduli = sorted(p for b, p in distinct if b == batch)
        spread = np.linspace(0, len(moduli) - 1, min(_MODULI, len(moduli))).round().astype(int)
        chosen += [distinct[batch, moduli[i]] for i in spread]
    return chosen


def _measure(backend: Backend, cell: SweepConfig, deadline: float) -> Points | None:
    """Train a few widths up to p, as many models at once as the device takes."""
    widths = sorted({1, max(1, cell.p // 4), max(1, cell.p // 2), cell.p})
    widths = [d for d in widths if work_of_step(cell, d) <= _LARGEST_STEP_FLOP]
    if widths:
        _timed(backend, cell, widths[0], 1)  # loads and compiles what the first step needs
    points: list[tuple[float, float]] = []
    for d in widths:
        if points and time.monotonic() > deadline:
            break
        slowest = points[-1][1] if points else 0.0
        seconds = max(slowest, _step_seconds(backend, cell, d, deadline))
        points.append((work_of_step(cell, d), seconds))
    return tuple(points) or None


def _step_seconds(backend: Backend, cell: SweepConfig, d_hidden: int, deadline: float) -> float:
    """Median of three timings, since any may be disturbed; of one where steps take long."""
    steps, seconds = _timed(backend, cell, d_hidden, cell.eval_every)
    while seconds < _MEASURED_SECONDS / 6:  # at first it is mostly starting and ending
        wanted = math.ceil(_MEASURED_SECONDS / 3 / seconds) * steps
        steps, seconds = _timed(backend, cell, d_hidden, wanted)
    timings = [seconds]
    while len(timings) < _TIMINGS and time.monotonic() + 2 * seconds < deadline:
        timings.append(_timed(backend, cell, d_hidden, steps)[1])
    return statistics.median_low(timings) / steps


def _timed(backend: Backend, cell: SweepConfig, d_hidden: int, steps: int) -> tuple[int, float]:
    """Steps and mean seconds of as many models as train at once: who ends makes room."""
    seeds = tuple(range(backend.at_once))
    config = replace(cell, widths=(d_hidden,), seeds=seeds, steps=steps, hold=_NEVER)
    start, taken, seconds = time.perf_counter(), 0, []
    work = Work(config, [Job(d_hidden, seed) for seed in seeds])
    with contextlib.closing(backend.train([work])) as events:  # type: ignore[type-var]
        for _, event in events:
            if isinstance(event, Finished):
                taken = event.record.evaluations[-1].step
                seconds.append(time.perf_counter() - start)
    return taken, statistics.fmean(seconds)


def _key(backend: Backend, cell: SweepConfig) -> dict[str, str]:
    """All that a curve depends on."""
    of_backend = {name: str(getattr(backend, name)) for name in ("name", "reason", "at_once")}
    versions = {"bilinear": bilinear.__version__, "torch": torch.__version__}
    of_cell = {"p": str(cell.p), "batch": str(cell.batch_size)}
    return {**of_backend, "processor": processor(backend), **versions, **of_cell}


def processor(backend: Backend) -> str:
    """Name what `backend` trains on: a GPU, or else this machine's processor."""
    device = torch.device(getattr(backend, "device", "cpu"))
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu()


@cache
def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
