"""How fast is the layer on a GPU? Ours, PyTorch's, and every installed fused layer.

bfloat16 and float32 (true and tf32), timed by CUDA events. Each call takes the next of several
inputs, which together exceed the L2 cache. Covers a few of the shapes of `python -m bench.gpu`.
Skipped, with the reason shown, without a CUDA device or where a peer is not installed.
"""

from typing import Any

import pytest
import torch

from bench.measure import least_work, peers
from bench.measure.layer_ways import OURS, Shape, contestants
from bench.measure.roofs import KINDS
from bench.measure.turns import Contestants, enter

HAS_GPU = torch.cuda.is_available()
SHAPES = [(16384, 128, 64), (16384, 512, 512), (16384, 1024, 4096)]
WAYS = (*OURS, *peers.PEERS)
# Without a GPU one case per way is enough to report the skip.
CASES = [
    (direction, shape, kind, op)
    for direction in least_work.DIRECTIONS
    for shape in SHAPES
    for kind in KINDS
    for op in peers.OPS
][: None if HAS_GPU else 1]


def refusal(way: str, op: str, kind: str) -> str:
    """Why a way is not timed; empty if it is timed."""
    if not HAS_GPU:
        return f"{way} on a GPU needs one; torch.cuda.is_available() is False"
    return "" if way in OURS else peers.absent(way, op, torch.device("cuda"), KINDS[kind][0])


def ways(op: str, shape: Shape, kind: str, direction: str) -> Contestants:
    dtype, precision = KINDS[kind]
    torch.set_float32_matmul_precision(precision)
    there = [way for way in WAYS if not refusal(way, op, kind)]
    return contestants(op, shape, there, direction, dtype, "cuda")


@pytest.mark.parametrize(("direction", "shape", "kind", "op"), CASES, ids=str)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_on_a_gpu(
    benchmark: Any, way: str, op: str, kind: str, shape: Shape, direction: str
) -> None:
    if refusal(way, op, kind):
        pytest.skip(refusal(way, op, kind))
    benchmark.group = f"{op} {direction} on a GPU, {kind}, M, d_in, d = {shape}"
    d_out = shape[1] if op == "mlp" else None
    least = least_work.DIRECTIONS[direction](*shape, d_out, KINDS[kind][0].itemsize)
    sizes = {"work": least, "kind": kind, "device": "cuda", "seconds": 1.0}
    try:
        enter(benchmark, way, ways, op, shape, kind, direction, **sizes)
    finally:
        torch.set_float32_matmul_precision("highest")
