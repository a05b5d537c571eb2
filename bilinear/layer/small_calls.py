"""Calls of few elements on the CPU, where Python is a part of the time one sees.

The layer by itself runs torch's own composition, which saves no more than x and [L, R]. The MLP's
composition would save h besides: it runs an autograd Function that makes no choices.
"""

from typing import Any

import torch
from torch import Tensor, addmm, mm, mul

from bilinear.layer import eager, select
from bilinear.layer.call_context import PLAIN, graph_is_kept, is_ordinary_gradient, is_undisturbed
from bilinear.layer.checks import DTYPES
from bilinear.layer.eager import Gradients

# So many elements of x and [L, R] together, 4 MB of float32: above, where they leave the cache,
# blocks of rows and tensors written over are worth the Python they take.
SMALL = 2**20


def is_small(
    x: Tensor, weight: Tensor, w_p: Tensor | None, bias: Tensor | None, b_p: Tensor | None
) -> bool:
    """Whether a call of few elements comes, on the CPU.

    Only what torch would take without a word is looked at; the rest it refuses by itself, and the
    caller has `arguments.complain` say why.
    """
    if type(x) not in PLAIN or type(weight) not in PLAIN or torch.compiler.is_compiling():
        return False
    shape = weight.shape
    return (
        len(shape) == 2
        and shape[0] % 2 == 0 < shape[0]
        and x.numel() * (shape[0] + shape[1]) < SMALL * shape[1]
        and x.is_cpu
        and weight.is_cpu
        and x.dtype in DTYPES
        and (w_p is None or (_is_on_cpu(w_p, 2) and w_p.shape[0] > 0))
        and (bias is None or (_is_on_cpu(bias, 1) and bias.shape[0] == shape[0]))
        and (b_p is None or (w_p is not None and _is_on_cpu(b_p, 1) and b_p.shape == w_p.shape[:1]))
        and not select.INTERPRETED
    )


def _is_on_cpu(tensor: Tensor, dim: int) -> bool:
    return type(tensor) in PLAIN and tensor.is_cpu and tensor.dim() == dim


def bilinear_mlp(
    x: Tensor, weight: Tensor, w_p: Tensor, bias: Tensor | None, b_p: Tensor | None
) -> Tensor:
    """out = h W_pᵀ + b_p for a call that `is_small`; raises RuntimeError where shapes don't fit.

    Saved for backward: x, the weights and [L, R]. Autocast and transforms go through torch's
    composition, as does a call without gradients.
    """
    if not (torch.is_grad_enabled() and is_undisturbed()):
        return eager.bilinear_mlp(x, weight, w_p, bias, b_p)
    out: Tensor
    if x.dim() == 2:
        out = _BilinearMLP.apply(x, weight, w_p, bias, b_p)
        return out
    out = _BilinearMLP.apply(x.reshape(-1, x.shape[-1]), weight, w_p, bias, b_p)
    return out.view(*x.shape[:-1], out.shape[1])


class _BilinearMLP(torch.autograd.Function):
    """On rows, in eight matmuls; h is formed again in backward, and [dL, dR] over [L, R]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        w_p: Tensor,
        bias: Tensor | None,
        b_p: Tensor | None,
    ) -> Tensor:
        lr = mm(x, weight.t()) if bias is None else addmm(bias, x, weight.t())
        ctx.save_for_backward(x, weight, w_p, bias, lr)
        left, right = lr.chunk(2, 1)
        h = left * right
        return mm(h, w_p.t()) if b_p is None else addmm(b_p, h, w_p.t())

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Gradients:
        x, weight, w_p, bias, lr = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if not is_ordinary_gradient(dout):
            return eager.bilinear_mlp_gradients(dout, x, weight, w_p, bias, needs)
        left, right = lr.chunk(2, 1)
        dw_p = mm(dout.t(), left * right) if needs[2] else None
        dh = mm(dout, w_p)
        if graph_is_kept():
            lr = torch.cat((dh * right, dh * left), 1)
        else:
            dleft = dh * right
            mul(dh, left, out=right)
            left.copy_(dleft)
            del dleft
        del dh
        return (
            mm(lr, weight) if needs[0] else None,
            mm(lr.t(), x) if needs[1] else None,
            dw_p,
            lr.sum(0) if needs[3] else None,
            dout.sum(0) if needs[4] else None,
        )
