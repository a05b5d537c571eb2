"""The bilinear layer as functions, with gradients of its own.

Eager calls that need gradients run an autograd Function that saves less than torch's composition
does and forms the rest again. Where a Function cannot follow, the same algebra runs as plain
torch operations (`composed`), and is exact there too: `torch.func` transforms, forward mode,
tensor subclasses such as DTensor, and gradients taken with `create_graph=True`.
"""

from typing import Any

import torch
from torch import Tensor

from bilinear.layer import custom_ops, eager, select, small_calls
from bilinear.layer.call_context import (
    composes,
    differentiated,
    graph_is_kept,
    is_ordinary,
    is_ordinary_gradient,
    opaque,
    requires_grad,
)
from bilinear.layer.checks import complain, fits
from bilinear.layer.eager import Gradients


def bilinear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, recompute: bool = False
) -> Tensor:
    """h = (x W_lᵀ + b_l) ∘ (x W_rᵀ + b_r).

    x (…, d_in), of any strides; weight (2d, d_in) and bias (2d,), left half first. Returns (…, d).
    Saved for backward: x, the weights and [L, R] (2d numbers a row); with `recompute`, x and the
    weights alone, for one more matmul in backward. Under autocast all are cast as `F.linear`
    casts them; otherwise dtypes and devices must be equal.

    Raises:
        TypeError: an argument is no tensor, or the dtypes differ or are not floating.
        ValueError: a shape or a device doesn't fit.
    """
    if not recompute and small_calls.is_small(x, weight, None, bias, None):
        try:
            return eager.bilinear(x, weight, bias)
        except (RuntimeError, IndexError):
            complain(x, weight, None, bias, None)
            raise
    ordinary = is_ordinary(x, weight, None, bias, None)
    if not ordinary and _autocasts(x):
        x, weight, bias = _autocast(x, weight, bias)
    if not fits(x, weight, None, bias, None):
        complain(x, weight, None, bias, None)
    if not ordinary and composes((x, weight, bias)):
        return eager.bilinear(x, weight, bias)
    if torch.is_grad_enabled() and requires_grad(x, weight, None, bias, None):
        result: Tensor = _Bilinear.apply(x, weight, bias, recompute, ordinary)
        return result
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    if not ordinary and opaque(x):
        h = custom_ops.forward(rows, weight, bias)
    else:
        h, _ = select.bilinear_forward(rows, weight, bias, keep=False)
    return h if x.dim() == 2 else h.view(*x.shape[:-1], h.shape[1])


def bilinear_mlp(
    x: Tensor,
    weight: Tensor,
    w_p: Tensor,
    bias: Tensor | None = None,
    b_p: Tensor | None = None,
    *,
    recompute: bool = False,
) -> Tensor:
    """out = ((x W_lᵀ + b_l) ∘ (x W_rᵀ + b_r)) W_pᵀ + b_p.

    x (…, d_in), of any strides; weight (2d, d_in) and bias (2d,), left half first; w_p (d_out, d);
    b_p (d_out,). Returns (…, d_out). h is never saved: it is formed again from [L, R], which is
    saved with x and the weights; with `recompute`, x and the weights alone. Where one kernel does
    the whole MLP, [L, R] is not saved either way.

    Raises:
        TypeError: an argument is no tensor, or the dtypes differ or are not floating.
        ValueError: a shape or a device doesn't fit.
    """
    if w_p is None:
        raise TypeError("w_p: expected a tensor, got NoneType")
    if not recompute and small_calls.is_small(x, weight, w_p, bias, b_p):
        try:
            return small_calls.bilinear_mlp(x, weight, w_p, bias, b_p)
        except (RuntimeError, IndexError):
            complain(x, weight, w_p, bias, b_p)
            raise
    ordinary = is_ordinary(x, weight, w_p, bias, b_p)
    if not ordinary and _autocasts(x):
        x, weight, w_p, bias, b_p = _autocast(x, weight, w_p, bias, b_p)
    if not fits(x, weight, w_p, bias, b_p):
        complain(x, weight, w_p, bias, b_p)
    if not ordinary and composes((x, weight, w_p, bias, b_p)):
        return eager.bilinear_mlp(x, weight, w_p, bias, b_p)
    if torch.is_grad_enabled() and requires_grad(x, weight, w_p, bias, b_p):
        result: Tensor = _BilinearMLP.apply(x, weight, w_p, bias, b_p, recompute, ordinary)
        return result
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    if not ordinary and opaque(x):
        out = custom_ops.mlp_forward(rows, weight, w_p, bias, b_p)
    else:
        out, _ = select.bilinear_mlp_forward(rows, weight, w_p, bias, b_p, keep=False)
    return out if x.dim() == 2 else out.view(*x.shape[:-1], out.shape[1])


class _Bilinear(torch.autograd.Function):
    """`bilinear` on rows, with saved tensors of its own."""

    # Made in one step, not with `setup_context`: [L, R] need not become an output then, and the
    # call costs half as much. `torch.func`, which wants the other form, never comes here.
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        recompute: bool,
        ordinary: bool,
    ) -> Tensor:
        rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        lr: Tensor | None = None
        if ordinary or not opaque(x):
            h, lr = select.bilinear_forward(rows, weight, bias, keep=not recompute)
        elif recompute:
            h = custom_ops.forward(rows, weight, bias)
        else:
            h, lr = custom_ops.forward_keep(rows, weight, bias)
        ctx.save_for_backward(x, weight, bias, lr)
        return h if x.dim() == 2 else h.view(*x.shape[:-1], h.shape[1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, lr = ctx.saved_tensors
        rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        dh = grad_outputs[0]
        dh = dh if dh.dim() == 2 else dh.reshape(-1, weight.shape[0] // 2)
        needs = ctx.needs_input_grad[:3]
        found: Gradients
        if is_ordinary_gradient(dh):
            spent = not graph_is_kept()
            found = select.bilinear_backward(dh, rows, weight, bias, lr, needs, spent=spent)
        elif differentiated(dh):
            found = eager.bilinear_gradients(dh, rows, weight, bias, needs)
        else:
            found = custom_ops.spread(custom_ops.backward(dh, rows, weight, bias, lr, needs), needs)
        if found[0] is not None and x.dim() != 2:
            found = found[0].view(x.shape), *found[1:]
        return *found, None, None


class _BilinearMLP(torch.autograd.Function):
    """`bilinear_mlp` on rows; h is formed again in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        w_p: Tensor,
        bias: Tensor | None,
        b_p: Tensor | None,
        recompute: bool,
        ordinary: bool,
    ) -> Tensor:
        rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        keep = not recompute and select.mlp_keeps_preact(x, weight, w_p)
        lr: Tensor | None = None
        if ordinary or not opaque(x):
            out, lr = select.bilinear_mlp_forward(rows, weight, w_p, bias, b_p, keep=keep)
        elif keep:
            out, lr = custom_ops.mlp_forward_keep(rows, weight, w_p, bias, b_p)
        else:
            out = custom_ops.mlp_forward(rows, weight, w_p, bias, b_p)
        ctx.save_for_backward(x, weight, w_p, bias, lr)
        return out if x.dim() == 2 else out.view(*x.shape[:-1], out.shape[1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, w_p, bias, lr = ctx.saved_tensors
        rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        dout = grad_outputs[0]
        dout = dout if dout.dim() == 2 else dout.reshape(-1, w_p.shape[0])
        needs = ctx.needs_input_grad[:5]
        found: Gradients
        if is_ordinary_gradient(dout):
            spent = not graph_is_kept()
            found = select.bilinear_mlp_backward(
                dout, rows, weight, w_p, bias, lr, needs, spent=spent
            )
        elif differentiated(dout):
            found = eager.bilinear_mlp_gradients(dout, rows, weight, w_p, bias, needs)
        else:
            found = custom_ops.spread(
                custom_ops.mlp_backward(dout, rows, weight, w_p, bias, lr, needs), needs
            )
        if found[0] is not None and x.dim() != 2:
            found = found[0].view(x.shape), *found[1:]
        return *found, None, None


def _autocasts(x: object) -> bool:
    if not isinstance(x, Tensor) or x.device.type == "meta":
        return False
    return torch.is_autocast_enabled(x.device.type)


def _autocast(*tensors: Any) -> tuple[Any, ...]:
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return tuple(_cast(tensor, dtype) for tensor in tensors)


def _cast(tensor: Any, dtype: torch.dtype) -> Any:
    """Cast what autocast casts: floating tensors, but float64 ones."""
    if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype != torch.float64:
        return tensor.to(dtype)
    return tensor
