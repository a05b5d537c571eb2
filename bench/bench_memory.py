"""How much memory does the layer take? Bytes saved for backward, and the peak of a training step.

Bytes are counted, not timed: `extra_info` holds them. Without `recompute` at most x and [L, R] are
saved: (d_in + 2d) / (d_in + 3d) of what eager saves for the MLP, and as much as eager for the layer
alone, where h is an output. With `recompute`, x alone. The peak is of what PyTorch's profiler sees
allocated on the CPU during one step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bench.bench_layer import OPS, SHAPES, _inputs, saved_bytes
from bench.contest import Contestants, enter
from bilinear.functional import is_small

WAYS = ["fused", "recompute", "eager"]


def _functions(op: str) -> dict[str, Callable[..., Tensor]]:
    ours, eager = OPS[op]
    return {"fused": ours, "recompute": partial(ours, recompute=True), "eager": eager}


def trainings(op: str, shape: tuple[int, int, int]) -> Contestants:
    inputs = _inputs(op, shape)
    upstream = torch.randn(shape[0], shape[2] if op == "layer" else shape[1])

    def step(f: Callable[..., Tensor]) -> None:
        torch.autograd.grad(f(*inputs), inputs, upstream)

    return {name: partial(step, f) for name, f in _functions(op).items()}


def peak_bytes(f: Callable[..., Tensor], inputs: list[Tensor], upstream: Tensor) -> int:
    """Most bytes allocated at once by a forward and backward, beyond its inputs."""
    torch.autograd.grad(f(*inputs), inputs, upstream)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        gradients = torch.autograd.grad(f(*inputs), inputs, upstream)
    del gradients
    alive = peak = 0
    memory = (e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]")
    for event in sorted(memory, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("way", WAYS)
def test_memory(benchmark: Any, way: str, op: str, shape: tuple[int, int, int]) -> None:
    m, d_in, d = shape
    f, inputs = _functions(op)[way], _inputs(op, shape)
    saved, of_eager = saved_bytes(f, inputs), saved_bytes(OPS[op][1], inputs)
    upstream = torch.randn(m, d if op == "layer" else d_in)
    small = is_small(inputs[0], inputs[1])
    benchmark.group = f"memory, {op}, M, d_in, d = {shape}"
    benchmark.extra_info |= {
        "bytes saved": saved,
        "bytes saved, of eager's": round(saved / of_eager, 3),
        "peak bytes": peak_bytes(f, inputs, upstream),
        "composed": way == "fused" and small,
    }
    enter(benchmark, way, trainings, op, shape, seconds=0.3)
    if way == "recompute":
        assert saved == 4 * m * d_in
    # Small calls run torch's own composition, which saves what eager does.
    if way == "fused" and not small:
        assert saved <= 4 * m * (d_in + 2 * d)
