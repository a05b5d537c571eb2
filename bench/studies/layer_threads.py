"""The CPU layer on one thread and on two, in turns; and by bytes a core on paper.

    python -m bench.studies.layer_threads

Forward and backward, float32. Two cores must be idle. "On paper" is modelled: cores at the rate
that one thread reached, all busy as long as there are shares of the rows, and the bytes a second
that they would then ask memory for: inputs, outputs, and [L, R] written once and read once.
"""

import json
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from bench.measure import least_work
from bench.measure.environment import write_result
from bench.measure.layer_ways import Shape, contestants
from bench.measure.turns import ratios, take_turns
from bench.suites.bench_layer import SHAPES, d_out_of

WAYS = ("fused", "eager")
CORES = (2, 16, 64)
MOST_SHARES = 16  # of backward's rows, in kernels/layer_cpu.c
SECONDS = 3.0


def on(threads: int, run: Callable[[], object]) -> Callable[[], object]:
    """A call with a number of threads; to set it takes a microsecond or two."""

    def call() -> object:
        torch.set_num_threads(threads)
        return run()

    return call


def contest(op: str, shape: Shape) -> dict[str, Any]:
    """One thread's time over two threads', by way: median and quartiles of the rounds."""
    calls = contestants(op, shape, WAYS, "forward and backward")
    turns = {f"{way} {n}": on(n, calls[way]) for way in WAYS for n in (1, 2)}
    seconds = take_turns(turns, SECONDS)
    found: dict[str, Any] = {"op": op, "shape": shape}
    for way in WAYS:
        one, two = seconds[f"{way} 1"], seconds[f"{way} 2"]
        found[way] = {"seconds": [median(one), median(two)], "times faster": ratios(one, two)}
    return found


def on_paper(op: str, shape: Shape, seconds: float) -> dict[str, float]:
    """GB/s that so many cores would ask for, at one core's measured rate."""
    m, _, d = shape
    work = least_work.forward_and_backward(*shape, d_out_of(op, shape))
    moved = work.moved + 2 * 4 * m * 2 * d
    return {str(n): moved / (seconds / min(n, MOST_SHARES)) / 1e9 for n in CORES}


def main() -> None:
    """Time the suite's shapes and write what was found."""
    found = []
    for op in ("layer", "mlp"):
        for shape in SHAPES:
            one = contest(op, shape)
            one["GB/s on paper, by cores"] = on_paper(op, shape, one["fused"]["seconds"][0])
            found.append(one)
            print(json.dumps(one), flush=True)
    command = "python -m bench.studies.layer_threads"
    write_result("layer_threads", {"command": command, "contests": found})


if __name__ == "__main__":
    main()
