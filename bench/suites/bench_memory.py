"""How much memory does the layer take? Bytes saved for backward, and the peak of a training step.

`extra_info` holds the counted bytes. Without `recompute` at most x and [L, R] are saved. For the
MLP this is (d_in + 2d) / (d_in + 3d) of what eager saves. For the layer alone, where h is the
output, it is as much as eager saves. With `recompute` only x is saved. The peak counts the
allocations that PyTorch's profiler records on the CPU during one step.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bench.measure import peers
from bench.measure.layer_ways import Shape, function, inputs
from bench.measure.turns import enter
from bench.suites.bench_layer import SHAPES, saved_bytes, trainings
from bilinear import explain

WAYS = ("fused", "recompute", "eager")


def peak_bytes(f: peers.Layer, tensors: list[Tensor], upstream: Tensor) -> int:
    """Most bytes allocated at once by a forward and backward, beyond its inputs."""
    torch.autograd.grad(f(*tensors), tensors, upstream)
    return most_allocated(lambda: torch.autograd.grad(f(*tensors), tensors, upstream))


def most_allocated(run: Callable[[], object]) -> int:
    """Most bytes that PyTorch has allocated at once during a call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        kept = run()
    del kept
    alive = peak = 0
    memory = (e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]")
    for event in sorted(memory, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", peers.OPS)
@pytest.mark.parametrize("way", WAYS)
def test_memory(benchmark: Any, way: str, op: str, shape: Shape) -> None:
    m, d_in, d = shape
    f, tensors = function(way, op), inputs(op, shape)
    saved, of_eager = saved_bytes(f, tensors), saved_bytes(function("eager", op), tensors)
    upstream = torch.randn(m, d if op == "layer" else d_in)
    sizes = shape if op == "layer" else (*shape, d_in)
    benchmark.group = f"memory, {op}, M, d_in, d = {shape}"
    benchmark.extra_info |= {
        "bytes saved": saved,
        "bytes saved, of eager's": round(saved / of_eager, 3),
        "peak bytes": peak_bytes(f, tensors, upstream),
        "composed": way == "fused" and explain(sizes).choices[0].implementation == "eager",
    }
    enter(benchmark, way, trainings, op, shape, WAYS, seconds=0.2)
    if way == "recompute":
        assert saved == 4 * m * d_in
    if way == "fused":
        assert saved <= 4 * m * (d_in + 2 * d)
