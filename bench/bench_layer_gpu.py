"""How fast is the layer on a GPU? Ours, PyTorch's, and every fused layer that installs.

bfloat16 and float32 (true and tf32), by CUDA events, inputs rotated past L2. A few shapes of those
that `python -m bench.gpu` measures. Skipped, with the reason shown, without a CUDA device; a peer
that is not installed likewise.
"""

from typing import Any

import pytest
import torch

from bench import peers, work
from bench.contest import Contestants, enter
from bench.layer_ways import OURS, Shape, contestants

SHAPES = [(16384, 128, 64), (16384, 512, 512), (16384, 1024, 4096)]
KINDS = {
    "bf16": (torch.bfloat16, "highest"),
    "tf32": (torch.float32, "high"),
    "fp32": (torch.float32, "highest"),
}
WAYS = (*OURS, *peers.PEERS)
NO_GPU = "needs a CUDA device; torch.cuda.is_available() is False"
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def refusal(way: str, op: str, kind: str, device: str = "cuda") -> str:
    """Why a way is not timed; nothing if it is."""
    return "" if way in OURS else peers.absent(way, op, torch.device(device), KINDS[kind][0])


def ways(op: str, shape: Shape, kind: str, direction: str) -> Contestants:
    dtype, precision = KINDS[kind]
    torch.set_float32_matmul_precision(precision)
    there = [way for way in WAYS if not refusal(way, op, kind)]
    return contestants(op, shape, there, direction, dtype, "cuda")


@pytest.mark.parametrize("direction", ["forward", "forward and backward"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("op", peers.OPS)
@pytest.mark.parametrize("way", WAYS)
def test_on_a_gpu(
    benchmark: Any, way: str, op: str, kind: str, shape: Shape, direction: str
) -> None:
    if refusal(way, op, kind):
        pytest.skip(refusal(way, op, kind))
    benchmark.group = f"{op} {direction} on a GPU, {kind}, M, d_in, d = {shape}"
    count = work.forward if direction == "forward" else work.forward_and_backward
    d_out = shape[1] if op == "mlp" else None
    least = count(*shape, d_out, KINDS[kind][0].itemsize)
    sizes = {"work": least, "kind": kind, "device": "cuda", "seconds": 1.0}
    try:
        enter(benchmark, way, ways, op, shape, kind, direction, **sizes)
    finally:
        torch.set_float32_matmul_precision("highest")
