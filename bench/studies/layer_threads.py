"""Times the CPU layer on one thread and on two, and models its memory traffic on more cores.

    python -m bench.studies.layer_threads

Forward and backward in float32; two cores must be idle. The figures "on paper" are modelled, not
measured: every core works at the measured rate of one thread, up to `MOST_SHARES` cores. They give
the bytes a second that these cores would read and write: the inputs, the outputs, and [L, R]
written once and read once.
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
MOST_SHARES = 16  # into which kernels/layer_cpu.c divides the rows of a backward
SECONDS = 3.0


def on(threads: int, run: Callable[[], object]) -> Callable[[], object]:
    """`run` on a number of threads; setting the number takes one or two microseconds."""

    def call() -> object:
        torch.set_num_threads(threads)
        return run()

    return call


def contest(op: str, shape: Shape) -> dict[str, Any]:
    """For each way, one thread's time over two threads': quartiles over the rounds."""
    calls = contestants(op, shape, WAYS, "forward and backward")
    turns = {f"{way} {n}": on(n, calls[way]) for way in WAYS for n in (1, 2)}
    seconds = take_turns(turns, SECONDS)
    found: dict[str, Any] = {"op": op, "shape": shape}
    for way in WAYS:
        one, two = seconds[f"{way} 1"], seconds[f"{way} 2"]
        found[way] = {"seconds": [median(one), median(two)], "times faster": ratios(one, two)}
    return found


def on_paper(op: str, shape: Shape, seconds: float) -> dict[str, float]:
    """Modelled GB/s of memory traffic for each number of cores, at one core's measured rate."""
    m, _, d = shape
    work = least_work.forward_and_backward(*shape, d_out_of(op, shape))
    moved = work.moved + 2 * 4 * m * 2 * d
    return {str(n): moved / (seconds / min(n, MOST_SHARES)) / 1e9 for n in CORES}


def main() -> None:
    """Time the shapes of the layer suite and write the results."""
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
