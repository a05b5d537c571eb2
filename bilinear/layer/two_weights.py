"""The MLP of two weights in memory of their own, as Llama-family models keep them: no copy of them.

    out = (g(x W_lᵀ + b_l) ∘ (x W_rᵀ + b_r)) W_pᵀ + b_p

Two matmuls take the place of one over [W_l; W_r], which would be copied together at every call: on
few rows, as text is generated, that costs more than the matmul. Triton's kernels, and operators
that a compiler is to see whole, take the packed weight; so it is packed for them.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bilinear.layer import eager, triton_kernels
from bilinear.layer.call import PLAIN, TRACED, TRANSFORMED, Call
from bilinear.layer.context import (
    are_plain,
    autocast,
    context_of,
    context_of_gradient,
    is_undisturbed,
)
from bilinear.layer.functional import bilinear_mlp
from bilinear.layer.gates import GATES, product

Pair = tuple[Tensor, Tensor]


def gated_mlp(
    x: Tensor,
    weights: Pair,
    biases: Pair | None,
    w_p: Tensor,
    b_p: Tensor | None,
    *,
    recompute: bool,
    gate: str,
) -> Tensor:
    """`functional.bilinear_mlp` for W_l and W_r (d, d_in), b_l and b_r (d,) apart."""
    b_l, b_r = biases or (None, None)
    given = x, *weights, b_l, b_r, w_p, b_p
    needs = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    # What most calls are is asked first: in microseconds, the rest costs as much as a small matmul.
    plain = is_undisturbed() and are_plain(*given)
    context = PLAIN if plain else context_of(*given)
    if context != TRANSFORMED and is_packed(x.device, needs and context == TRACED):
        bias = None if biases is None else torch.cat(biases)
        packed = torch.cat(weights)
        return bilinear_mlp(x, packed, w_p, bias, b_p=b_p, recompute=recompute, gate=gate)
    x, w_l, w_r, b_l, b_r, w_p, b_p = given if plain else autocast(*given)
    if context == PLAIN and needs:
        out: Tensor = TwoWeights.apply(x, w_l, w_r, b_l, b_r, w_p, b_p, recompute, gate)
        return out
    left, right = F.linear(x, w_l, b_l), F.linear(x, w_r, b_r)
    h = product(left, right, gate) if needs or context != PLAIN else _h(left, right, gate, left)
    return F.linear(h, w_p, b_p)


def is_packed(device: torch.device, traced_for_gradients: bool) -> bool:
    """Whether both weights are copied together, for whatever takes them packed."""
    return traced_for_gradients or device.type == "cuda" or triton_kernels.INTERPRETED


def detail(call: Call) -> str:
    """What `explain` says of how the two weights are taken."""
    if is_packed(call.device, call.context == TRACED):
        return "W_l and W_r are packed at every call, a copy of both"
    return "W_l and W_r take a matmul each: to pack them would copy both at every call"


def _h(left: Tensor, right: Tensor, gate: str, out: Tensor | None = None) -> Tensor:
    """g(L) ∘ R without memory for both factors."""
    return product(left, right, gate, torch.empty_like(left) if out is None else out)


class TwoWeights(torch.autograd.Function):
    """Saves x, the weights, and L and R unless `recompute`; never h or g(L)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w_l: Tensor,
        w_r: Tensor,
        b_l: Tensor | None,
        b_r: Tensor | None,
        w_p: Tensor,
        b_p: Tensor | None,
        recompute: bool,
        gate: str,
    ) -> Tensor:
        """Out (…, d_out)."""
        left, right = F.linear(x, w_l, b_l), F.linear(x, w_r, b_r)
        halves = (None, None) if recompute else (left, right)
        ctx.save_for_backward(x, w_l, w_r, b_l, b_r, w_p, *halves)
        ctx.gate = gate
        return F.linear(_h(left, right, gate, left if recompute else None), w_p, b_p)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of forward's arguments, in their order."""
        x, w_l, w_r, b_l, b_r, w_p, left, right = ctx.saved_tensors
        needs, gate = ctx.needs_input_grad, ctx.gate
        rows = x.reshape(-1, x.shape[-1])
        dout = grad_outputs[0].reshape(-1, w_p.shape[0])
        if context_of_gradient(grad_outputs[0]) == TRANSFORMED:
            packed = torch.cat((w_l, w_r)), None if b_l is None else torch.cat((b_l, b_r))
            dx, dweight, dbias, dw_p, db_p = _differentiable(dout, rows, *packed, w_p, gate)
            dw_l, dw_r = dweight.chunk(2)
            db_l, db_r = (None, None) if b_l is None else dbias.chunk(2)
            return dx.view(x.shape), dw_l, dw_r, db_l, db_r, dw_p, db_p, None, None
        if left is None:
            left, right = F.linear(rows, w_l, b_l), F.linear(rows, w_r, b_r)
        left, right = left.reshape(-1, left.shape[-1]), right.reshape(-1, right.shape[-1])
        db_p = dout.sum(0) if needs[6] else None
        dw_p = dout.t() @ _h(left, right, gate) if needs[5] else None
        dx = dw_l = dw_r = db_l = db_r = None
        if any(needs[:5]):
            dleft, dright = _halves_backward(dout @ w_p, left, right, gate)
            del left, right
            dw_l, dw_r = (
                half.t() @ rows if need else None
                for half, need in zip((dleft, dright), needs[1:3], strict=True)
            )
            db_l = dleft.sum(0) if needs[3] else None
            db_r = dright.sum(0) if needs[4] else None
            if needs[0]:
                dx = torch.addmm(dleft @ w_l, dright, w_r).view(x.shape)
        return dx, dw_l, dw_r, db_l, db_r, dw_p, db_p, None, None


def _differentiable(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, w_p: Tensor, gate: str
) -> tuple[Any, ...]:
    """All gradients, by operations that can be differentiated again."""
    sizes = x.shape[0], x.shape[1], w_p.shape[1], w_p.shape[0]
    call = Call(*sizes, x.dtype, x.device, gate=gate, context=TRANSFORMED)
    return eager.backward(call, dout, x, weight, bias, w_p, None, (True,) * 5)


def _halves_backward(dh: Tensor, left: Tensor, right: Tensor, gate: str) -> Pair:
    """(dL, dR) for dh, L and R (m, d); dh is written to."""
    dright = product(left, dh, gate, torch.empty_like(dh))
    dleft = dh.mul_(right)
    if gate != "identity":
        GATES[gate].backward_out(dleft, left, dleft)
    return dleft, dright
