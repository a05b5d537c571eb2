"""Contestants take turns, contests run in their own processes, and roofs are plausible."""

import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from bench.measure import roofs, turns
from bench.measure.clock import call_seconds
from bench.measure.least_work import Work
from bench.measure.turns import enter, take_turns


def test_contestants_take_turns() -> None:
    calls: list[str] = []

    def slow() -> None:
        calls.append("slow")
        time.sleep(0.002)

    durations = take_turns({"slow": slow, "fast": lambda: calls.append("fast")}, seconds=0.02)
    rounds = len(durations["slow"])
    assert rounds >= 5
    assert calls == ["slow", "fast"] + ["slow", "slow", "fast", "fast"] * rounds
    assert min(durations["slow"]) >= 0.002 > sorted(durations["fast"])[rounds // 2]


class _Benchmark:
    """The parts of pytest-benchmark's fixture that `enter` uses."""

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}
        self.durations: list[float] = []
        self._timer = time.perf_counter

    def pedantic(self, target: Callable[[], object], rounds: int, iterations: int) -> None:
        for _ in range(rounds):
            start = self._timer()
            target()
            self.durations.append(self._timer() - start)


def _sleepers() -> dict[str, Callable[[], object]]:
    return {"long": lambda: time.sleep(0.004), "short": lambda: time.sleep(0.001)}


def test_report_is_of_one_task_against_the_roofs_of_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    roof = roofs.Roof(1000.0, 900.0, 5)
    monkeypatch.setattr(roofs, "measured", lambda device: roofs.Roofs(roof, {"fp32": roof}))
    benchmark = _Benchmark()
    times, least = {"long": 4, "short": 1}, Work(flop=0.1, moved=0.2)
    medians = enter(benchmark, "long", _sleepers, work=least, times=times, seconds=0.01)
    assert 0.001 <= medians["long"] < 0.004
    assert benchmark.durations == pytest.approx(
        [t / 4 for t in turns._contest(_sleepers, (), 0.01, 5, "cpu", True, 1)["long"]]
    )
    notes = benchmark.extra_info
    assert notes["times faster than short"] == medians["short"] / medians["long"]
    assert notes["seconds at the roof"] == 0.2 / 1000
    assert notes["share of the roof"] == pytest.approx(0.2 / 1000 / medians["long"])


def _who_is_there() -> dict[str, Callable[[], object]]:
    long = os.environ.get("MALLOC_MMAP_MAX_") == "0"
    return {str(os.getpid()): lambda: time.sleep(0.02 if long else 0.002)}


def test_a_contest_has_processes_of_its_own_and_malloc_its_settings() -> None:
    before = dict(os.environ)
    kept = turns._contest(_who_is_there, (), 0.01, 5, "cpu", True, 2)
    given_back = turns._contest(_who_is_there, (), 0.01, 5, "cpu", False, 1)
    assert len(kept) == 2
    assert len(given_back) == 1
    assert str(os.getpid()) not in {*kept, *given_back}
    assert all(min(durations) >= 0.02 for durations in kept.values())
    assert all(0.002 <= min(durations) < 0.02 for durations in given_back.values())
    assert dict(os.environ) == before


def test_a_clock_of_calls_times_each_once() -> None:
    calls: list[int] = []
    found = take_turns({"a": lambda: calls.append(0)}, 10.0, once=call_seconds, most_rounds=7)
    assert len(found["a"]) == 7
    assert len(calls) == 1 + 7


def test_roofs_are_of_this_machine() -> None:
    found = roofs.measure("cpu", tiny=True)
    for roof in (found.copy, *found.matmul.values()):
        assert 1e5 < roof.median <= roof.best < 1e13
