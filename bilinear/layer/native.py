"""The layer on the CPU by compiled code, in one call each way."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bilinear.kernels import layer_cpu
from bilinear.layer.call import TRANSFORMED, Call, Detail, Gradients

NAME = "native"
# For d_in above this the matmuls dominate, and torch's are as fast.
MAX_D_IN = 512


def refusal(call: Call) -> str:
    """See `call.Implementation`."""
    if call.device.type != "cpu":
        return f"the compiled layer is for cpu tensors, not {call.device.type}"
    if call.context == TRANSFORMED:
        return "torch's transforms see no compiled layer"
    if call.dtype == torch.bfloat16:
        return "torch's matmuls take bfloat16 at twice the rate of the compiled layer"
    if call.d_in > MAX_D_IN:
        return f"for d_in above {MAX_D_IN} torch's matmuls are as fast as the compiled layer"
    return layer_cpu.unavailable_because(call.dtype, call.gate)


def saves_preact(call: Call) -> bool:
    """See `call.Implementation`."""
    return not call.recompute


def detail(call: Call, direction: str) -> Detail:
    """See `call.Implementation`."""
    reason = f"compiled for {layer_cpu.best_isa()}, over blocks of rows that stay in the cache"
    if not layer_cpu.shares_work() and torch.get_num_threads() > 1:
        reason += "; on one thread, without OpenMP or in a forked process"
    return Detail("", None, reason)


def forward(
    call: Call,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    w_p: Tensor | None,
    b_p: Tensor | None,
    *,
    save_preact: bool,
) -> tuple[Tensor, Tensor | None]:
    """See `call.Implementation`."""
    return layer_cpu.forward(x, weight, bias, w_p, b_p, gate=call.gate, save_preact=save_preact)


def backward(
    call: Call,
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    w_p: Tensor | None,
    preact: Tensor | None,
    needs: Sequence[bool],
) -> Gradients:
    """See `call.Implementation`."""
    return layer_cpu.backward(dout, x, weight, bias, w_p, preact, needs, gate=call.gate)
