"""How fast a backend trains: seconds a step, measured on that very one and kept in a cache."""

import contextlib
import math
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

import bilinear
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.cost import work_of_step
from bilinear.experiment.record import Finished, Job
from bilinear.training.backend import Backend, Work
from bilinear.training.forecast.rate_cache import CalibrationCache, Points, cache_folder

# What a whole calibration may take; a width is measured for _MEASURED_SECONDS of it.
BUDGET_SECONDS = 2.0
_MEASURED_SECONDS = 0.1
_TIMINGS = 3
# Measured are at most so many moduli; the others lie between them.
_MODULI = 4
# A single step with its evaluation must fit the budget on any machine.
_LARGEST_STEP_FLOP = 2e9
_NEVER = 10**9


@dataclass(frozen=True)
class Curve:
    """Seconds a step a model takes at modulus p, while its device trains as many as it does.

    `points` are (work of a step in FLOP, see `work_of_step`; seconds a step), both rising.
    """

    p: int
    points: Points

    def seconds(self, work: float) -> float:
        """Seconds of one step of so much work: between points linear, outside proportional."""
        first, last = self.points[0], self.points[-1]
        if work <= first[0] or work >= last[0]:
            of, seconds = first if work <= first[0] else last
            return seconds * work / of
        for (w0, s0), (w1, s1) in pairwise(self.points):
            if work <= w1:
                return s0 + (s1 - s0) * (work - w0) / (w1 - w0)
        raise AssertionError("unreachable: points rise")


@dataclass(frozen=True)
class Calibration:
    """Curves of one device by batch size and modulus, and where they came from.

    The device is a `processor` that trains `at_once` models at a time; the backend has `devices`
    of them.
    """

    at_once: int
    processor: str
    curves: dict[int, list[Curve]]
    measured: int
    cached: int
    notes: tuple[str, ...] = ()
    devices: int = 1

    def step_seconds(self, config: SweepConfig, d_hidden: int) -> float:
        """Seconds a step of a model, its share of evaluations included.

        A modulus that was not measured lies between its neighbours, in proportion to log p.
        """
        work = work_of_step(config, d_hidden)
        curves = sorted(self.curves[config.batch_size], key=lambda curve: curve.p)
        below = [curve for curve in curves if curve.p <= config.p] or curves[:1]
        above = [curve for curve in curves if curve.p >= config.p] or curves[-1:]
        low, high = below[-1], above[0]
        if low.p == high.p:
            return low.seconds(work)
        t = math.log(config.p / low.p) / math.log(high.p / low.p)
        return low.seconds(work) ** (1 - t) * high.seconds(work) ** t

    @property
    def source(self) -> str:
        """Say whether the figures are fresh."""
        if not self.cached:
            return "measured now"
        return "measured before (cached)" if not self.measured else "measured now and before"


@runtime_checkable
class TrainsElsewhere(Protocol):
    """A backend whose devices are not this machine's: it has them measured where they are."""

    def calibrate(self, cells: Sequence[SweepConfig], budget_seconds: float) -> Calibration | None:
        """As the function `calibrate`, on one of the devices; the cache is the one there."""
        ...


def calibrate(
    backend: Backend,
    cells: Sequence[SweepConfig],
    *,
    folder: Path | None = None,
    budget_seconds: float = BUDGET_SECONDS,
) -> Calibration | None:
    """Return the rate at which `backend` trains these cells; None if it takes too long to measure.

    What the cache in `folder` lacks is measured and added to it, one curve for each modulus and
    batch size, up to four moduli. A cache that can't be read or written is told in `notes`. A
    backend that trains elsewhere measures there, and `folder` is not used.
    """
    if isinstance(backend, TrainsElsewhere):
        return backend.calibrate(cells, budget_seconds)
    cache = CalibrationCache(cache_folder() if folder is None else folder)
    curves: dict[int, list[Curve]] = {}
    measured = cached = 0
    deadline = time.monotonic() + budget_seconds
    for cell in to_measure(cells):
        key = _key(backend, cell)
        points = cache.read(key)
        if points is not None:
            cached += 1
        else:
            if measured and time.monotonic() > deadline - _MEASURED_SECONDS:
                continue
            points = _measure(backend, cell, deadline)
            if points is None:
                continue
            measured += 1
            cache.write(key, points)
        curve = Curve(cell.p, points)
        curves.setdefault(cell.batch_size, []).append(curve)
    if any(cell.batch_size not in curves for cell in cells):
        return None
    return Calibration(
        backend.at_once, processor(backend), curves, measured, cached, tuple(cache.notes)
    )


def is_cached(backend: Backend, cells: Sequence[SweepConfig]) -> bool:
    """Whether `calibrate` would have nothing to measure, going by the files that are there.

    Of devices elsewhere this machine's files say nothing.
    """
    if isinstance(backend, TrainsElsewhere):
        return False
    cache = CalibrationCache(cache_folder())
    return all(cache.has(_key(backend, cell)) for cell in to_measure(cells))


def to_measure(cells: Sequence[SweepConfig]) -> list[SweepConfig]:
    """One cell a batch size and modulus, smallest modulus first, spread if there are many."""
    distinct = {(cell.batch_size, cell.p): cell for cell in reversed(cells)}
    chosen: list[SweepConfig] = []
    for batch in sorted({batch for batch, _ in distinct}):
        moduli = sorted(p for b, p in distinct if b == batch)
        if len(moduli) > _MODULI:
            last = len(moduli) - 1
            moduli = [moduli[round(i * last / (_MODULI - 1))] for i in range(_MODULI)]
        chosen += [distinct[batch, p] for p in moduli]
    return chosen


def _measure(backend: Backend, cell: SweepConfig, deadline: float) -> Points | None:
    """Train a few widths up to p, as many models at once as the device takes."""
    widths = sorted({1, max(1, cell.p // 4), max(1, cell.p // 2), cell.p})
    widths = [d for d in widths if work_of_step(cell, d) <= _LARGEST_STEP_FLOP]
    if not widths:
        return None
    _timed(backend, cell, widths[0], 1)  # loads and compiles what the first step needs
    points: list[tuple[float, float]] = []
    slowest = 0.0
    for d in widths:
        if points and time.monotonic() > deadline:
            break
        slowest = max(slowest, _step_seconds(backend, cell, d, deadline))
        points.append((work_of_step(cell, d), slowest))
    return tuple(points)


def _step_seconds(backend: Backend, cell: SweepConfig, d_hidden: int, deadline: float) -> float:
    """Median of three timings, since any may be disturbed; of one where steps take long."""
    steps, seconds = _timed(backend, cell, d_hidden, cell.eval_every)
    while seconds < _MEASURED_SECONDS / 6:  # at first it is mostly starting and ending
        wanted = math.ceil(_MEASURED_SECONDS / 3 / seconds) * steps
        steps, seconds = _timed(backend, cell, d_hidden, wanted)
    all_seconds = [seconds]
    while len(all_seconds) < _TIMINGS and time.monotonic() + 2 * seconds < deadline:
        all_seconds.append(_timed(backend, cell, d_hidden, steps)[1])
    return statistics.median_low(all_seconds) / steps


def _timed(backend: Backend, cell: SweepConfig, d_hidden: int, steps: int) -> tuple[int, float]:
    """Train so many models at once as the device takes; return steps and mean seconds of each.

    Their mean, since in a queue one that ends early makes room for the next.
    """
    seeds = tuple(range(backend.at_once))
    config = replace(cell, widths=(d_hidden,), seeds=seeds, steps=steps, hold=_NEVER)
    start, taken, seconds = time.perf_counter(), 0, []
    jobs = [Job(d_hidden, seed) for seed in seeds]
    with contextlib.closing(backend.train([Work(config, jobs)])) as events:  # type: ignore[type-var]
        for _, event in events:
            if isinstance(event, Finished):
                taken = event.record.evaluations[-1].step
                seconds.append(time.perf_counter() - start)
    return taken, statistics.fmean(seconds)


def _key(backend: Backend, cell: SweepConfig) -> dict[str, str]:
    """All that a curve depends on."""
    return {
        "backend": backend.name,
        "reason": backend.reason,
        "processor": processor(backend),
        "at_once": str(backend.at_once),
        "bilinear": bilinear.__version__,
        "torch": torch.__version__,
        "p": str(cell.p),
        "batch": str(cell.batch_size),
    }


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
