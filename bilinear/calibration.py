"""How fast this machine trains: seconds a step, measured on the very backend and kept in a cache."""

import contextlib
import hashlib
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch

import bilinear
from bilinear.config import SweepConfig
from bilinear.cost import work_of_step
from bilinear.training import Backend, Finished, Job, Work

# What a whole calibration may take; a width is measured for _MEASURED_SECONDS of it.
BUDGET_SECONDS = 2.0
_MEASURED_SECONDS = 0.1
# Measured are at most so many moduli; the others lie between them.
_MODULI = 4
# A single step with its evaluation must fit the budget on any machine.
_LARGEST_STEP_FLOP = 2e9
_NEVER = 10**9


@dataclass(frozen=True)
class Curve:
    """Seconds a step a model takes at modulus p, while the device trains `at_once` models.

    `points` are (work of a step in FLOP, see `work_of_step`; seconds a step), both rising.
    """

    p: int
    at_once: int
    points: tuple[tuple[float, float], ...]

    def seconds(self, work: float) -> float:
        """Seconds of one step of so much work: between points linear, outside proportional."""
        first, last = self.points[0], self.points[-1]
        if work <= first[0] or work >= last[0]:
            of, seconds = first if work <= first[0] else last
            return seconds * work / of
        for (w0, s0), (w1, s1) in zip(self.points, self.points[1:], strict=False):
            if work <= w1:
                return s0 + (s1 - s0) * (work - w0) / (w1 - w0)
        raise AssertionError("unreachable: points rise")


@dataclass(frozen=True)
class Calibration:
    """Curves of one backend by batch size and modulus, and where they came from."""

    at_once: int
    curves: dict[int, list[Curve]]
    measured: int
    cached: int
    notes: tuple[str, ...] = ()

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


def cache_folder() -> Path:
    """$BILINEAR_CACHE, or bilinear in $XDG_CACHE_HOME (~/.cache)."""
    if os.environ.get("BILINEAR_CACHE"):
        return Path(os.environ["BILINEAR_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bilinear"


def calibrate(
    backend: Backend,
    cells: Sequence[SweepConfig],
    *,
    folder: Path | None = None,
    budget_seconds: float = BUDGET_SECONDS,
) -> Calibration | None:
    """Return the rate at which `backend` trains these cells; None if it takes too long to measure.

    What the cache in `folder` lacks is measured and added to it, one curve for each modulus and
    batch size, up to four moduli. A cache that can't be read or written is told in `notes`.
    """
    folder = cache_folder() if folder is None else folder
    curves: dict[int, list[Curve]] = {}
    notes: list[str] = []
    measured = cached = 0
    deadline = time.monotonic() + budget_seconds
    for cell in to_measure(cells):
        file, key = _entry(folder, backend, cell)
        curve = _read(file, key, notes)
        if curve is not None:
            cached += 1
        else:
            if measured and time.monotonic() > deadline - _MEASURED_SECONDS:
                continue
            curve = _measure(backend, cell, deadline)
            if curve is None:
                continue
            measured += 1
            _write(file, key, curve, notes)
        curves.setdefault(cell.batch_size, []).append(curve)
    if any(cell.batch_size not in curves for cell in cells):
        return None
    return Calibration(backend.at_once, curves, measured, cached, tuple(notes))


def is_cached(backend: Backend, cells: Sequence[SweepConfig]) -> bool:
    """Whether `calibrate` would have nothing to measure, going by the files that are there."""
    folder = cache_folder()
    return all(_entry(folder, backend, cell)[0].exists() for cell in to_measure(cells))


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


def _measure(backend: Backend, cell: SweepConfig, deadline: float) -> Curve | None:
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
        steps, seconds = _timed(backend, cell, d, cell.eval_every)
        if seconds < _MEASURED_SECONDS:
            wanted = math.ceil(_MEASURED_SECONDS / seconds) * steps
            steps, seconds = _timed(backend, cell, d, wanted)
        slowest = max(slowest, seconds / steps)
        points.append((work_of_step(cell, d), slowest))
    return Curve(cell.p, backend.at_once, tuple(points))


def _timed(backend: Backend, cell: SweepConfig, d_hidden: int, steps: int) -> tuple[int, float]:
    """Train so many models at once as the device takes; return steps each and seconds."""
    seeds = tuple(range(backend.at_once))
    config = replace(cell, widths=(d_hidden,), seeds=seeds, steps=steps, hold=_NEVER)
    start, taken = time.perf_counter(), 0
    jobs = [Job(d_hidden, seed) for seed in seeds]
    with contextlib.closing(backend.train([Work(config, jobs)])) as events:  # type: ignore[type-var]
        for _, event in events:
            if isinstance(event, Finished):
                taken = event.record.evaluations[-1].step
    return taken, time.perf_counter() - start


def _entry(folder: Path, backend: Backend, cell: SweepConfig) -> tuple[Path, dict[str, str]]:
    """The file of a cell's curve, and all that its figures depend on."""
    key = {
        "backend": backend.name,
        "reason": backend.reason,
        "processor": processor(),
        "at_once": str(backend.at_once),
        "bilinear": bilinear.__version__,
        "torch": torch.__version__,
        "p": str(cell.p),
        "batch": str(cell.batch_size),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"calibration-{digest}.json", key


@cache
def processor() -> str:
    """Name this machine's processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(file: Path, key: dict[str, str], notes: list[str]) -> Curve | None:
    try:
        content = json.loads(file.read_bytes())
        if content["key"] != key:
            raise ValueError("of another machine")
        points = tuple((float(work), float(s)) for work, s in content["curve"]["points"])
        rising = all(a[0] < b[0] and a[1] <= b[1] for a, b in zip(points, points[1:], strict=False))
        if not (points and rising and 0 < points[0][0] and 0 < points[0][1] < math.inf):
            raise ValueError("no curve")
        return Curve(int(key["p"]), int(key["at_once"]), points)
    except FileNotFoundError:
        return None
    except OSError as error:
        notes.append(f"calibration cache: {file}: {error.strerror}; measured anew")
    except (ValueError, TypeError, KeyError):
        notes.append(f"calibration cache: {file} is damaged; measured anew")
    return None


def _write(file: Path, key: dict[str, str], curve: Curve, notes: list[str]) -> None:
    """In one piece: under a name of its own first, since other processes write here too."""
    content = json.dumps({"key": key, "curve": asdict(curve)}, indent=2) + "\n"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=file.parent, suffix=".partial")
        try:
            with os.fdopen(descriptor, "w") as out:
                out.write(content)
            os.replace(partial, file)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as error:
        notes.append(f"calibration cache: {file}: {error.strerror}; not kept")
