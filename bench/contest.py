"""Several ways to do one thing, timed in turns, shown in pytest-benchmark's own table.

A machine's speed drifts while benchmarks run, so contestants that are to be compared take turns:
round by round, each once. pytest-benchmark times one test after another; what it gets here are the
rounds already measured, so its table and its JSON show medians that can be divided by each other.
"""

import itertools
import time
from collections.abc import Callable
from functools import cache
from statistics import median
from typing import Any

Contestants = dict[str, Callable[[], object]]


def take_turns(contestants: Contestants, seconds: float, least_rounds: int = 5) -> dict[str, list]:
    """Time every contestant once a round, for about `seconds` in all; durations by name.

    Before its timed call each has one that is not timed: OpenMP's threads spin for some time after
    the last contestant's work, and would be charged to the next.
    """
    for run in contestants.values():
        run()  # warm-up: allocations, first-call set-up
    durations: dict[str, list[float]] = {name: [] for name in contestants}
    end = time.perf_counter() + seconds
    for rounds in itertools.count(1):
        for name, run in contestants.items():
            run()
            start = time.perf_counter()
            run()
            durations[name].append(time.perf_counter() - start)
        if rounds >= least_rounds and time.perf_counter() > end:
            return durations


@cache
def _contest(
    make: Callable[..., Contestants], arguments: tuple, seconds: float, least_rounds: int
) -> dict[str, list]:
    return take_turns(make(*arguments), seconds, least_rounds)


def enter(
    benchmark: Any,
    name: str,
    make: Callable[..., Contestants],
    *arguments: Any,
    seconds: float = 4.0,
    least_rounds: int = 5,
) -> dict[str, float]:
    """Report contestant `name` of `make(*arguments)`; the first to ask has all of them timed.

    Returns the median seconds of all, and notes in the report how many times faster `name` is.
    """
    contest = _contest(make, arguments, seconds, least_rounds)
    medians = {other: median(durations) for other, durations in contest.items()}
    for other in medians:
        if other != name:
            benchmark.extra_info[f"times faster than {other}"] = medians[other] / medians[name]
    durations = contest[name]
    clock = itertools.chain.from_iterable((0.0, t) for t in durations)
    benchmark._timer = lambda: next(clock)
    benchmark.pedantic(lambda: None, rounds=len(durations), iterations=1)
    return medians
