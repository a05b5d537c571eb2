"""How fast is the layer, and how much does it save for backward? Ours, eager, and torch.compile.

On the CPU in float32: a batch of M rows through d_in -> d (-> d_out), forward without gradients,
and forward and backward into all inputs. "recompute" saves only the input and the weights. The
tests of "memory given back" leave malloc at its defaults: it returns tensors of 32 MB and more to
the system when they are freed, and smaller ones sometimes.
"""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.measure import least_work, peers
from bench.measure.layer_ways import OURS, Shape, contestants, function, inputs
from bench.measure.turns import Contestants, enter

SHAPES = [(64, 128, 64), (4096, 128, 64), (4096, 256, 512), (16384, 64, 512)]
# Only one shape, because searching for the best tiles takes long.
AUTOTUNED = (4096, 256, 512)
CPU = torch.device("cpu")
FORWARD = ("fused", "eager", "compile", "linear-binary")
MEMORY = ("fused", "eager")
PROCESSES = 5
TRAINING = ("fused", "recompute", "eager", "compile", "max-autotune")


def ways_at(op: str, shape: Shape) -> tuple[str, ...]:
    """The ways of forward and backward that are available here."""
    ways = [way for way in TRAINING if way != "max-autotune" or shape == AUTOTUNED]
    return tuple(way for way in ways if way in OURS or not peers.absent(way, op, CPU))


def forwards(op: str, shape: Shape) -> Contestants:
    ways = tuple(way for way in FORWARD if way in OURS or not peers.absent(way, op, CPU))
    return contestants(op, shape, ways, "forward")


def trainings(op: str, shape: Shape, ways: tuple[str, ...]) -> Contestants:
    return contestants(op, shape, ways, "forward and backward")


def d_out_of(op: str, shape: Shape) -> int | None:
    """The MLPs here project back to d_in."""
    return shape[1] if op == "mlp" else None


def saved_bytes(f: peers.Layer, tensors: list[Tensor]) -> int:
    """Bytes saved for backward that are not weights, each storage once."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = f(*tensors)
    del out
    parameters = {tensor.untyped_storage().data_ptr() for tensor in tensors[1:]}
    return sum(size for at, size in sizes.items() if at not in parameters)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", peers.OPS)
@pytest.mark.parametrize("way", FORWARD)
def test_forward(benchmark: Any, way: str, op: str, shape: Shape) -> None:
    if way not in OURS and peers.absent(way, op, CPU):
        pytest.skip(peers.absent(way, op, CPU))
    benchmark.group = f"{op} forward, M, d_in, d = {shape}"
    least = least_work.forward(*shape, d_out_of(op, shape))
    enter(benchmark, way, forwards, op, shape, work=least, seconds=1.5, processes=PROCESSES)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", peers.OPS)
@pytest.mark.parametrize("way", TRAINING)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_forward_and_backward(benchmark: Any, way: str, op: str, shape: Shape) -> None:
    if way == "max-autotune" and shape != AUTOTUNED:
        pytest.skip(f"max-autotune is timed only at {AUTOTUNED}, because its search takes long")
    if way not in OURS and peers.absent(way, op, CPU):
        pytest.skip(peers.absent(way, op, CPU))
    benchmark.group = f"{op} forward and backward, M, d_in, d = {shape}"
    least = least_work.forward_and_backward(*shape, d_out_of(op, shape))
    ways = ways_at(op, shape)
    how = {"work": least, "seconds": 3.0, "processes": PROCESSES}
    enter(benchmark, way, trainings, op, shape, ways, **how)
    if way in OURS:
        tensors = inputs(op, shape)
        eager = saved_bytes(function("eager", op), tensors)
        share = saved_bytes(function(way, op), tensors) / eager
        benchmark.extra_info["activation bytes saved, of eager's"] = round(share, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="measures glibc's malloc")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", peers.OPS)
@pytest.mark.parametrize("way", MEMORY)
def test_memory_given_back(benchmark: Any, way: str, op: str, shape: Shape) -> None:
    benchmark.group = f"{op} forward and backward, memory given back, M, d_in, d = {shape}"
    least = least_work.forward_and_backward(*shape, d_out_of(op, shape))
    how = {"work": least, "seconds": 1.5, "keep_memory": False, "processes": 3}
    enter(benchmark, way, trainings, op, shape, MEMORY, **how)
