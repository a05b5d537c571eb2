"""How fast is the layer, and how much does it save for backward? Ours, eager, and torch.compile.

On the CPU in float32: a batch of M rows through d_in -> d (-> d_out), forward without gradients,
and forward and backward into all inputs. "recompute" saves the input and the weights alone.
"""

import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.contest import Contestants, enter
from bilinear import composed
from bilinear.functional import bilinear, bilinear_mlp

SHAPES = [(64, 128, 64), (512, 256, 256), (4096, 128, 64), (4096, 256, 512), (16384, 64, 512)]
OPS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "layer": (bilinear, composed.bilinear),
    "mlp": (bilinear_mlp, composed.bilinear_mlp),
}
WAYS = ["fused", "recompute", "eager", "compile"]
HAS_COMPILER = shutil.which("c++") is not None or shutil.which("g++") is not None


def _inputs(op: str, shape: tuple[int, int, int]) -> list[Tensor]:
    m, d_in, d = shape
    sizes = [(m, d_in), (2 * d, d_in)] + ([(d_in, d)] if op == "mlp" else [])
    return [torch.randn(size).div_(size[1] ** 0.5).requires_grad_() for size in sizes]


def _functions(op: str) -> dict[str, Callable[..., Tensor]]:
    ours, eager = OPS[op]
    found = {"fused": ours, "recompute": partial(ours, recompute=True), "eager": eager}
    if HAS_COMPILER:
        torch.compiler.reset()
        found["compile"] = torch.compile(eager, fullgraph=True, dynamic=False)
    return found


def forwards(op: str, shape: tuple[int, int, int]) -> Contestants:
    inputs = [tensor.detach() for tensor in _inputs(op, shape)]
    ours, eager = OPS[op]
    return {"fused": partial(ours, *inputs), "eager": partial(eager, *inputs)}


def trainings(op: str, shape: tuple[int, int, int]) -> Contestants:
    inputs = _inputs(op, shape)
    upstream = torch.randn(shape[0], shape[2] if op == "layer" else shape[1])

    def step(f: Callable[..., Tensor]) -> None:
        torch.autograd.grad(f(*inputs), inputs, upstream)

    return {name: partial(step, f) for name, f in _functions(op).items()}


def saved_bytes(f: Callable[..., Tensor], inputs: list[Tensor]) -> int:
    """Bytes saved for backward that are not weights, each storage once."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = f(*inputs)
    del out
    weights = {tensor.untyped_storage().data_ptr() for tensor in inputs[1:]}
    return sum(size for at, size in sizes.items() if at not in weights)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("way", ["fused", "eager"])
def test_forward(benchmark: Any, way: str, op: str, shape: tuple[int, int, int]) -> None:
    benchmark.group = f"{op} forward, M, d_in, d = {shape}"
    enter(benchmark, way, forwards, op, shape, seconds=1.0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_forward_and_backward(
    benchmark: Any, way: str, op: str, shape: tuple[int, int, int]
) -> None:
    if way == "compile" and not HAS_COMPILER:
        pytest.skip("torch.compile needs a C++ compiler")
    benchmark.group = f"{op} forward and backward, M, d_in, d = {shape}"
    enter(benchmark, way, trainings, op, shape, seconds=1.5)
    if way in ("fused", "recompute"):
        f, inputs = _functions(op)[way], _inputs(op, shape)
        share = saved_bytes(f, inputs) / saved_bytes(OPS[op][1], inputs)
        benchmark.extra_info["activation bytes saved, of eager's"] = round(share, 3)
