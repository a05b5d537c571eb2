"""Runs pytest on the device, in sets of tests, the kernels' first, on several processes."""

import importlib.util
import os
import re
import sys
from collections import Counter
from functools import partial
from typing import Any

from bench.visit.commands import Done, run
from bench.visit.items import Item, Visit

_KERNELS = [
    f"tests/kernels/test_{name}.py"
    for name in ("grid_triton", "mlp", "dual", "pointwise", "gates_device", "partials")
]
# name: (arguments of pytest, the most seconds)
_SETS: dict[str, tuple[list[str], float]] = {
    "kernels": (_KERNELS, 150.0),
    "training": (["tests/training/test_gpu.py"], 90.0),
    "layer": (["-m", "gpu", "tests/layer"], 120.0),
    "peers": (["-m", "gpu", "tests/bench/test_peers.py"], 90.0),
    "accuracy": (["tests/kernels/test_accuracy.py", "tests/kernels/test_dispatch.py"], 60.0),
}
_OUTCOME = re.compile(r"(PASSED|FAILED|ERROR|SKIPPED|XFAIL)\s+(tests/\S+)")
_OUTCOME_ALONE = re.compile(r"^(tests/\S+) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)", re.MULTILINE)


def items(visit: Visit) -> list[Item]:
    """Return one pytest run for each set of files."""
    return [
        Item(name, partial(_pytest, name), least=30, most=most) for name, (_, most) in _SETS.items()
    ]


def _pytest(name: str, visit: Visit) -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider"]
    command += ["--continue-on-collection-errors", *_workers(visit), *_SETS[name][0]]
    if visit.quick:
        command.append("--collect-only")
    seconds = visit.at_most(_SETS[name][1])
    return outcome(run(command, seconds, visit.logs / f"tests-{name}.log"))


def _workers(visit: Visit) -> list[str]:
    """One process per core, as compiling takes most time; at most 12, for the GPU's memory."""
    if visit.quick or importlib.util.find_spec("xdist") is None:
        return []
    return ["-n", str(min(12, len(os.sched_getaffinity(0)))), "--dist", "worksteal"]


def outcome(done: Done) -> dict[str, Any]:
    """Count the tests' outcomes in pytest's output, also if its time ran out."""
    found = {test: kind for kind, test in _OUTCOME.findall(done.output)}
    found |= dict(_OUTCOME_ALONE.findall(done.output))
    counts = dict(sorted(Counter(found.values()).items()))
    failures = [test for test, kind in found.items() if kind in ("FAILED", "ERROR")]
    result = done.summary(20_000) | {"counts": counts, "failures": failures}
    summary = ", ".join(f"{n} {kind.lower()}" for kind, n in counts.items())
    # If no test ran, pytest's last line: after --collect-only it counts the tests.
    summary = summary or "".join(done.output.splitlines()[-1:]).strip("= ")
    result["told"] = f"{summary}, exit {result['exit']}"
    if done.exit != 0:
        result["failed"] = f"{result['told']}; {failures[:5]}"
    return result
