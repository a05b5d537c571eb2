"""The layer on torch's own matmuls, with hand-derived gradients.

    dh = dout W_p     dW_p = doutᵀ h     dL = dh ∘ R ∘ g′(L)     dR = dh ∘ g(L)
    dx = [dL, dR] W   dW = [dL, dR]ᵀ x   db, db_p = column sums

All rows at once: what gains by blocks that stay in the cache is compiled (`native`). On the CPU
what lies between the products is compiled too, one pass in place of one for each of torch's
operations.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from bilinear.kernels import layer_cpu
from bilinear.kernels.dispatch import Detail
from bilinear.layer.call import (
    TRACED,
    TRANSFORMED,
    Arguments,
    Backward,
    Call,
    Forward,
    Gradients,
    Saved,
)
from bilinear.layer.gates import product, product_backward

NAME = "matmuls"
# Without a projection the layer saves as much for backward as eager does. Below this many elements
# of x and [L, R] (4 MB of float32) they stay in the cache, and calling the Function costs the time
# that it saves.
SMALL = 2**20
# From this many elements on (with a gate: always) dL and dR are written into the halves of one
# tensor, not concatenated: backward's peak memory falls by a third, for 2 µs more Python.
_WRITTEN_TO_HALVES = 2**16


def refusal(call: Call) -> str:
    """See `call.Implementation`."""
    if call.context == TRANSFORMED:
        return "torch.func, forward mode and tensor subclasses follow torch's own operations alone"
    if (
        call.m * (call.d_in + 2 * call.d) < SMALL
        and call.d_out is None
        and not call.recompute
        and call.context != TRACED
        and call.device.type == "cpu"
    ):
        return f"fewer than {SMALL} elements don't pay for an autograd Function"
    return ""


def saves_preact(call: Call) -> bool:
    """See `call.Implementation`."""
    return not call.recompute


def detail(call: Call, direction: str) -> Detail:
    """See `call.Implementation`."""
    between = ", and compiled code for what is between them" if _is_compiled(call) else ""
    return Detail("", None, f"torch's matmuls over all {call.m} rows at once{between}")


def _is_compiled(call: Call) -> bool:
    return layer_cpu.has_pointwise(call.device, call.dtype)


def ready_forward(call: Call, *given: *Arguments, save_preact: bool) -> Forward:
    """See `call.Implementation`."""
    return partial(forward, call, save_preact=save_preact)


def ready_backward(call: Call, dout: Tensor, *saved: *Saved, needs: Sequence[bool]) -> Backward:
    """See `call.Implementation`."""
    return partial(backward, call, needs=needs)


def forward(call: Call, *given: *Arguments, save_preact: bool) -> tuple[Tensor, Tensor | None]:
    """Out or h, and preact if it's to be saved; see `call.Forward`."""
    x, weight, bias, w_p, b_p = given
    preact = linear(x, weight, bias)
    left, right = preact.chunk(2, 1)
    h = hidden(left, right, call.gate)
    out = h if w_p is None else linear(h, w_p, b_p)
    return out, preact if save_preact else None


def backward(call: Call, dout: Tensor, *saved: *Saved, needs: Sequence[bool]) -> Gradients:
    """The gradients that `needs` names; see `call.Backward`."""
    x, weight, bias, w_p, preact = saved
    del saved  # its reference to preact would keep that in memory
    dx = dweight = dbias = dw_p = None
    db_p = dout.sum(0) if needs[4] else None
    if not any(needs[:4]):
        return dx, dweight, dbias, dw_p, db_p
    inner = any(needs[:3])
    preact = linear(x, weight, bias) if preact is None else preact
    left, right = preact.chunk(2, 1)
    if needs[3] and not (inner and _is_compiled(call)):
        h = hidden(left, right, call.gate)
        dw_p = torch.mm(dout.t(), h)
        del h
    if inner:
        dh = dout if w_p is None else torch.mm(dout, w_p)
        if _is_compiled(call):
            dpreact = layer_cpu.product_backward(
                dh, left, right, gate=call.gate, into_dh="h" if needs[3] else None
            )
            dw_p = torch.mm(dout.t(), dh) if needs[3] else None  # dh holds h now
        else:
            whole = call.gate == "identity" and left.numel() < _WRITTEN_TO_HALVES // 2
            out = None if whole else torch.empty_like(preact)
            dpreact = product_backward(dh, left, right, call.gate, out)
        del preact, left, right, dh  # freed before dx is made
        dx = torch.mm(dpreact, weight) if needs[0] else None
        dweight = torch.mm(dpreact.t(), x) if needs[1] else None
        dbias = dpreact.sum(0) if needs[2] else None
    return dx, dweight, dbias, dw_p, db_p


def hidden(left: Tensor, right: Tensor, gate: str, *, into_left: bool = False) -> Tensor:
    """h = g(L) ∘ R, (m, d) each, without memory for both factors; with `into_left` in L's."""
    if gate != "identity" and layer_cpu.has_pointwise(left.device, left.dtype):
        return layer_cpu.product_forward(left, right, gate=gate, into_left=into_left)
    # With the identity torch takes one pass, too.
    out = None if into_left or gate == "identity" else left.new_empty(left.shape)
    return product(left, right, gate, left if into_left else out)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear of x (m, d_in), in microseconds less."""
    return torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())
