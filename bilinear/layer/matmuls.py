"""The layer on torch's own matmuls, with hand-derived gradients.

    dh = dout W_p     dW_p = doutᵀ h     dL = dh ∘ R ∘ g′(L)     dR = dh ∘ g(L)
    dx = [dL, dR] W   dW = [dL, dR]ᵀ x   db, db_p = column sums

All rows at once: what gains by blocks that stay in the cache is compiled (`native`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bilinear.kernels.dispatch import Detail
from bilinear.layer.call import TRACED, TRANSFORMED, Arguments, Call, Gradients, Saved
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
    return Detail("", None, f"torch's matmuls over all {call.m} rows at once")


def forward(call: Call, *given: *Arguments, save_preact: bool) -> tuple[Tensor, Tensor | None]:
    """See `call.Implementation`."""
    x, weight, bias, w_p, b_p = given
    preact = linear(x, weight, bias)
    left, right = preact.chunk(2, 1)
    h = product(left, right, call.gate, _to_write(left, call))
    out = h if w_p is None else linear(h, w_p, b_p)
    return out, preact if save_preact else None


def backward(call: Call, dout: Tensor, *saved: *Saved, needs: Sequence[bool]) -> Gradients:
    """See `call.Implementation`."""
    x, weight, bias, w_p, preact = saved
    del saved  # its reference to preact would keep that in memory
    dx = dweight = dbias = dw_p = None
    inner = needs[0] or needs[1] or needs[2]
    if inner or needs[3]:
        preact = linear(x, weight, bias) if preact is None else preact
        left, right = preact.chunk(2, 1)
    if needs[3]:
        h = product(left, right, call.gate, _to_write(left, call))
        dw_p = torch.mm(dout.t(), h)
        del h
    if inner:
        dh = dout if w_p is None else torch.mm(dout, w_p)
        whole = call.gate == "identity" and left.numel() < _WRITTEN_TO_HALVES // 2
        out = None if whole else left.new_empty(left.shape[0], 2 * left.shape[1])
        dpreact = product_backward(dh, left, right, call.gate, out)
        del preact, left, right, dh  # freed before dx is made
        dx = torch.mm(dpreact, weight) if needs[0] else None
        dweight = torch.mm(dpreact.t(), x) if needs[1] else None
        dbias = dpreact.sum(0) if needs[2] else None
    return dx, dweight, dbias, dw_p, dout.sum(0) if needs[4] else None


def _to_write(left: Tensor, call: Call) -> Tensor | None:
    """Memory for h where g(L) would be a tensor of its own beside it."""
    return None if call.gate == "identity" else left.new_empty(left.shape)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear of x (m, d_in), in microseconds less."""
    return torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())
