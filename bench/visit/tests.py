"""Tests on the device, most telling first, on several processes, their output kept as it comes."""

import importlib.util
import os
import re
import sys
from typing import Any

from bench.visit.commands import Done, run
from bench.visit.items import Item, Visit

_KERNELS = [
    f"tests/kernels/test_{name}.py"
    for name in ("grid_triton", "mlp", "dual", "pointwise", "gates_device", "partials")
]
# name: (what pytest is given, the most seconds)
_SETS: dict[str, tuple[list[str], float]] = {
    "kernels": (_KERNELS, 270.0),
    "training": (["tests/training/test_gpu.py"], 120.0),
    "layer": (["-m", "gpu", "tests/layer"], 150.0),
    "peers": (["-m", "gpu", "tests/bench/test_peers.py"], 90.0),
    "accuracy": (["tests/kernels/test_accuracy.py", "tests/kernels/test_dispatch.py"], 60.0),
}
_OUTCOME = re.compile(r"(PASSED|FAILED|ERROR|SKIPPED|XFAIL)\s+(tests/\S+)")
_OUTCOME_ALONE = re.compile(r"^(tests/\S+) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)", re.MULTILINE)


def items(visit: Visit) -> list[Item]:
    """A pytest run for each set of files."""
    return [Item(name, _pytest(name), least=30, most=most) for name, (_, most) in _SETS.items()]


def _pytest(name: str) -> Any:
    def tested(visit: Visit) -> dict[str, Any]:
        command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider"]
        command += ["--continue-on-collection-errors", *_workers(visit), *_SETS[name][0]]
        if visit.quick:
            command.append("--collect-only")
        seconds = visit.at_most(_SETS[name][1])
        return outcome(run(command, seconds, visit.logs / f"tests-{name}.log"))

    return tested


def _workers(visit: Visit) -> list[str]:
    """Use a process a core, as compiling takes most time, but no more than one GPU can hold."""
    if visit.quick or importlib.util.find_spec("xdist") is None:
        return []
    return ["-n", str(min(12, len(os.sched_getaffinity(0)))), "--dist", "worksteal"]


def outcome(done: Done) -> dict[str, Any]:
    """Counts and failures, also of a run that was cut off."""
    found = {where: what for what, where in _OUTCOME.findall(done.output)}
    found |= dict(_OUTCOME_ALONE.findall(done.output))
    counts = {what: list(found.values()).count(what) for what in sorted(set(found.values()))}
    failures = [where for where, what in found.items() if what in ("FAILED", "ERROR")]
    result = done.summary(20_000) | {"counts": counts, "failures": failures}
    # pytest's own last line where no test ran: of a dry run, how many it would run.
    said = ", ".join(f"{n} {what.lower()}" for what, n in counts.items())
    said = said or "".join(done.output.splitlines()[-1:]).strip("= ")
    result["told"] = f"{said}, exit {result['exit']}"
    if done.exit != 0:
        result["failed"] = f"{result['told']}; {failures[:5]}"
    return result
