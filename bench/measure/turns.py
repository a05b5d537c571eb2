"""Several ways to do one thing, timed in turns, shown in pytest-benchmark's own table.

A machine's speed drifts while benchmarks run, so contestants take turns: each runs once a round.
pytest-benchmark itself times one test after another. This module reports rounds measured in turns
to pytest-benchmark, so that the medians in its table and JSON can be compared.

On the CPU every contest runs in processes of its own, in which malloc keeps freed memory. Otherwise
a tensor may get reused pages or new ones, depending on earlier tests and chance. The system clears
new pages one by one, so times would differ by a factor of two.
"""

import itertools
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from multiprocessing import get_context
from statistics import median, quantiles
from typing import Any

from bench.measure import roofs
from bench.measure.clock import Stopwatch, host_seconds, stopwatch
from bench.measure.least_work import Work

Contestants = dict[str, Callable[[], object]]

# glibc's malloc gives no tensor a mapping of its own and returns no memory to the system.
_KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
# Otherwise Inductor starts workers, each of which imports torch while the contest is timed.
_ALONE = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}


def take_turns(
    contestants: Contestants,
    seconds: float,
    least_rounds: int = 5,
    once: Stopwatch = host_seconds,
    most_rounds: int | None = None,
) -> dict[str, list[float]]:
    """Time every contestant once a round, for about `seconds` in all; durations by name."""
    for run in contestants.values():
        run()  # warm-up: allocations, first-call set-up
    durations: dict[str, list[float]] = {name: [] for name in contestants}
    end = time.perf_counter() + seconds
    for rounds in itertools.count(1):
        for name, run in contestants.items():
            durations[name].append(once(run))
        enough = rounds >= least_rounds and time.perf_counter() > end
        if enough or rounds == most_rounds:
            return durations


def ratios(longer: list[float], shorter: list[float]) -> list[float]:
    """Quartiles of how many times longer the first takes than the second, round by round."""
    return quantiles([a / b for a, b in zip(longer, shorter, strict=True)], n=4)


@cache
def _contest(
    make: Callable[..., Contestants],
    arguments: tuple,
    seconds: float,
    least_rounds: int,
    device: str,
    keep_memory: bool,
    processes: int,
) -> dict[str, list[float]]:
    how = make, arguments, seconds / processes, least_rounds, device
    if device != "cpu":
        return _measure(*how)
    all_of_them: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(processes):
        with process_of_its_own(keep_memory) as process:
            for name, durations in process.submit(_measure, *how).result().items():
                all_of_them[name] += durations
    return all_of_them


def _measure(
    make: Callable[..., Contestants],
    arguments: tuple,
    seconds: float,
    least_rounds: int,
    device: str,
) -> dict[str, list[float]]:
    return take_turns(make(*arguments), seconds, least_rounds, stopwatch(device))


@contextmanager
def process_of_its_own(keep_memory: bool = True) -> Iterator[ProcessPoolExecutor]:
    """A new process for a contest, in which malloc keeps what is freed."""
    with (
        _environment(_ALONE | (_KEEP if keep_memory else {})),
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process,
    ):
        yield process


@contextmanager
def _environment(more: dict[str, str]) -> Iterator[None]:
    """Set variables for the processes started meanwhile."""
    before = dict(os.environ)
    os.environ.update(more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def enter(
    benchmark: Any,
    name: str,
    make: Callable[..., Contestants],
    *arguments: Any,
    work: Work | None = None,
    times: dict[str, int] | None = None,
    kind: str = "fp32",
    device: str = "cpu",
    seconds: float = 4.0,
    least_rounds: int = 5,
    keep_memory: bool = True,
    processes: int = 1,
) -> dict[str, float]:
    """Report contestant `name` of `make(*arguments)`; the first such call times all contestants.

    `work` is the least work of the task. If given, the report compares `name` with the roofs, in
    arithmetic of `kind`. `times` is how often one call of each contestant does the task, where once
    is too short to time; times are reported per task. The `processes` run one after another and
    share `seconds`. Without `keep_memory` malloc keeps its defaults, as it always does on other
    systems than Linux.
    Returns the median seconds of all contestants, and reports how many times faster `name` is.
    """
    raw = _contest(make, arguments, seconds, least_rounds, device, keep_memory, processes)
    contest = {
        other: [t / (times[other] if times else 1) for t in durations]
        for other, durations in raw.items()
    }
    medians = {other: median(durations) for other, durations in contest.items()}
    for other in medians:
        if other != name:
            benchmark.extra_info[f"times faster than {other}"] = medians[other] / medians[name]
    if work is not None:
        benchmark.extra_info |= _held_against_the_roofs(work, medians[name], kind, device)
    durations = contest[name]
    clock = itertools.chain.from_iterable((0.0, t) for t in durations)
    benchmark._timer = lambda: next(clock)
    benchmark.pedantic(lambda: None, rounds=len(durations), iterations=1)
    return medians


def _held_against_the_roofs(work: Work, seconds: float, kind: str, device: str) -> dict[str, Any]:
    found = roofs.measured(device)
    return {
        "flop": work.flop,
        "bytes": work.moved,
        "kind": kind,
        "share of the roof": found.share(work.flop, work.moved, seconds, kind),
        "seconds at the roof": found.least_seconds(work.flop, work.moved, kind),
    }
