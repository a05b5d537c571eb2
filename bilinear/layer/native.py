"""The layer on the CPU by compiled code, in one call each way.

Whether it pays is read from a table of what was measured, which `python -m
bench.studies.native_or_torch` makes: the call runs here if the compiled layer was no slower than
torch's matmuls at the nearest sizes of its dtype, with and without a projection and `recompute`, on
this class of processor. What is faster depends on the processor more than on the sizes: torch
multiplies float16 at a tenth of float32's rate, or faster than float32 where there are
instructions for it.
"""

import json
from collections.abc import Sequence
from functools import cache, lru_cache, partial
from math import log2
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bilinear.kernels import layer_cpu
from bilinear.kernels.dispatch import Detail
from bilinear.layer.call import TRANSFORMED, Arguments, Backward, Call, Forward, Gradients, Saved

NAME = "native"
TABLE = Path(__file__).with_name("native_table.json")


class Measured(NamedTuple):
    """A row of the table: torch's time over the compiled layer's, forward and backward."""

    processor: str  # one of layer_cpu.PROCESSORS
    m: int
    d_in: int
    d: int
    d_out: int  # 0 without a projection
    dtype: str
    recompute: bool
    threads: int
    times_faster: float


@cache
def table() -> tuple[Measured, ...]:
    """What was measured, on the machines that docs/decisions.md names."""
    return tuple(Measured(*row) for row in json.loads(TABLE.read_text())["rows"])


def nearest(call: Call) -> Measured | None:
    """The row whose sizes are nearest by ratios; None if none is of this processor and dtype."""
    dtype, has_projection = str(call.dtype).removeprefix("torch."), call.d_out is not None
    sizes = max(int(call.m), 1), int(call.d_in), int(call.d)
    kind = layer_cpu.processor(), has_projection, dtype, call.recompute
    return _nearest(sizes, kind, torch.get_num_threads())


@lru_cache(4096)
def _nearest(
    sizes: tuple[int, ...], kind: tuple[str, bool, str, bool], threads: int
) -> Measured | None:
    def distance(row: Measured) -> tuple[float, float]:
        far = sum(abs(log2(mine / its)) for mine, its in zip(sizes, row[1:4], strict=True))
        return far, abs(log2(threads / row.threads))

    return min(_rows_of(kind), key=distance, default=None)


@lru_cache
def _rows_of(kind: tuple[str, bool, str, bool]) -> list[Measured]:
    return [
        row for row in table() if (row.processor, row.d_out > 0, row.dtype, row.recompute) == kind
    ]


def refusal(call: Call) -> str:
    """See `call.Implementation`."""
    if call.device.type != "cpu":
        return f"the compiled layer is for cpu tensors, not {call.device.type}"
    if call.context == TRANSFORMED:
        return "torch's transforms see no compiled layer"
    if missing := layer_cpu.unavailable_because(call.dtype, call.gate):
        return missing
    row = nearest(call)
    if row is None:
        return f"the compiled layer was not measured on {layer_cpu.processor()} processors"
    return "" if row.times_faster >= 1 else f"torch's matmuls are faster {_at(row)}"


def _at(row: Measured) -> str:
    sizes = f"{row.m}, {row.d_in}, {row.d}" + (f", {row.d_out}" if row.d_out else "")
    rate = f"the compiled layer at {row.times_faster} times torch's rate at ({sizes})"
    return f"(measured on {row.processor}: {rate}, threads: {row.threads})"


def saves_preact(call: Call) -> bool:
    """See `call.Implementation`."""
    return not call.recompute


def detail(call: Call, direction: str) -> Detail:
    """See `call.Implementation`."""
    reason = f"compiled for {layer_cpu.best_isa()}, over blocks of rows that stay in the cache"
    row = nearest(call)
    reason += "" if row is None else f" {_at(row)}"
    if not layer_cpu.shares_work() and torch.get_num_threads() > 1:
        reason += "; on one thread, without OpenMP or in a forked process"
    return Detail("", None, reason)


def ready_forward(call: Call, *given: *Arguments, save_preact: bool) -> Forward:
    """See `call.Implementation`."""
    return partial(forward, call, save_preact=save_preact)


def ready_backward(call: Call, dout: Tensor, *saved: *Saved, needs: Sequence[bool]) -> Backward:
    """See `call.Implementation`."""
    return partial(backward, call, needs=needs)


def forward(call: Call, *given: *Arguments, save_preact: bool) -> tuple[Tensor, Tensor | None]:
    """Out or h, and preact if it's to be saved; see `call.Forward`."""
    return layer_cpu.forward(*given, gate=call.gate, save_preact=save_preact)


def backward(call: Call, dout: Tensor, *saved: *Saved, needs: Sequence[bool]) -> Gradients:
    """The gradients that `needs` names; see `call.Backward`."""
    return layer_cpu.backward(dout, *saved, needs, gate=call.gate)
