"""The bilinear layer as functions, with gradients of its own.

Eager calls that need gradients run an autograd Function that saves less than torch's composition
does and forms the rest again. Where a Function cannot follow, the same algebra runs as plain
torch operations (`composed`), and is exact there too: `torch.func` transforms, forward mode,
tensor subclasses such as DTensor, and gradients taken with `create_graph=True`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode, is_traceable_wrapper_subclass

from . import composed, ops, paths
from .arguments import DTYPES, complain, fits
from .composed import Gradients

# Below this many elements of x and [L, R] together, what a Function costs in Python is more than
# what it saves: torch's own composition runs (on the CPU, where there is no launch to save).
SMALL = 2**17

_PLAIN = (Tensor, torch.nn.Parameter)

# What torch's own compiler asks before it overwrites what a graph saved: whether this backward
# pass is one that leaves the graph to be walked again.
_graph_is_kept = torch._C._autograd._get_current_graph_task_keep_graph


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
    if not recompute and is_small(x, weight, None, bias, None):
        try:
            return composed.bilinear(x, weight, bias)
        except RuntimeError:
            complain(x, weight, None, bias, None)
            raise
    ordinary = _is_ordinary(x, weight, None, bias, None)
    if not ordinary and _autocasts(x):
        x, weight, bias = _autocast(x, weight, bias)
    if not fits(x, weight, None, bias, None):
        complain(x, weight, None, bias, None)
    if not ordinary and _composes((x, weight, bias)):
        return composed.bilinear(x, weight, bias)
    if torch.is_grad_enabled() and _requires_grad(x, weight, None, bias, None):
        result: Tensor = _Bilinear.apply(x, weight, bias, recompute, ordinary)
        return result
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    if not ordinary and _opaque(x):
        h = ops.forward(rows, weight, bias)
    else:
        h, _ = paths.bilinear_forward(rows, weight, bias, keep=False)
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
    b_p (d_out,). Returns (…, d_out). h is not saved (but by calls of few elements on the CPU): it
    is formed again from [L, R], which is saved with x and the weights; with `recompute`, x and the
    weights alone. Where one kernel does the whole MLP, [L, R] is not saved either way.

    Raises:
        TypeError: an argument is no tensor, or the dtypes differ or are not floating.
        ValueError: a shape or a device doesn't fit.
    """
    if w_p is None:
        raise TypeError("w_p: expected a tensor, got NoneType")
    if not recompute and is_small(x, weight, w_p, bias, b_p):
        try:
            return composed.bilinear_mlp(x, weight, w_p, bias, b_p)
        except RuntimeError:
            complain(x, weight, w_p, bias, b_p)
            raise
    ordinary = _is_ordinary(x, weight, w_p, bias, b_p)
    if not ordinary and _autocasts(x):
        x, weight, w_p, bias, b_p = _autocast(x, weight, w_p, bias, b_p)
    if not fits(x, weight, w_p, bias, b_p):
        complain(x, weight, w_p, bias, b_p)
    if not ordinary and _composes((x, weight, w_p, bias, b_p)):
        return composed.bilinear_mlp(x, weight, w_p, bias, b_p)
    if torch.is_grad_enabled() and _requires_grad(x, weight, w_p, bias, b_p):
        result: Tensor = _BilinearMLP.apply(x, weight, w_p, bias, b_p, recompute, ordinary)
        return result
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    if not ordinary and _opaque(x):
        out = ops.mlp_forward(rows, weight, w_p, bias, b_p)
    else:
        out, _ = paths.bilinear_mlp_forward(rows, weight, w_p, bias, b_p, keep=False)
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
        if ordinary or not _opaque(x):
            h, lr = paths.bilinear_forward(rows, weight, bias, keep=not recompute)
        elif recompute:
            h = ops.forward(rows, weight, bias)
        else:
            h, lr = ops.forward_keep(rows, weight, bias)
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
        if _is_ordinary_gradient(dh):
            spent = not _graph_is_kept()
            found = paths.bilinear_backward(dh, rows, weight, bias, lr, needs, spent=spent)
        elif _differentiated(dh):
            found = composed.bilinear_gradients(dh, rows, weight, bias, needs)
        else:
            found = ops.spread(ops.backward(dh, rows, weight, bias, lr, needs), needs)
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
        keep = not recompute and paths.mlp_keeps_preact(x, weight, w_p)
        lr: Tensor | None = None
        if ordinary or not _opaque(x):
            out, lr = paths.bilinear_mlp_forward(rows, weight, w_p, bias, b_p, keep=keep)
        elif keep:
            out, lr = ops.mlp_forward_keep(rows, weight, w_p, bias, b_p)
        else:
            out = ops.mlp_forward(rows, weight, w_p, bias, b_p)
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
        if _is_ordinary_gradient(dout):
            spent = not _graph_is_kept()
            found = paths.bilinear_mlp_backward(
                dout, rows, weight, w_p, bias, lr, needs, spent=spent
            )
        elif _differentiated(dout):
            found = composed.bilinear_mlp_gradients(dout, rows, weight, w_p, bias, needs)
        else:
            found = ops.spread(ops.mlp_backward(dout, rows, weight, w_p, bias, lr, needs), needs)
        if found[0] is not None and x.dim() != 2:
            found = found[0].view(x.shape), *found[1:]
        return *found, None, None


def _is_ordinary(
    x: Tensor, weight: Tensor, w_p: Tensor | None, bias: Tensor | None, b_p: Tensor | None
) -> bool:
    """Whether plain tensors come, and nothing transforms, casts or watches the call.

    One expression: where elements are few, a call of a helper costs a hundredth of the layer.
    """
    return (
        not torch.compiler.is_compiling()
        and type(x) in _PLAIN
        and type(weight) in _PLAIN
        and (w_p is None or type(w_p) in _PLAIN)
        and (bias is None or type(bias) in _PLAIN)
        and (b_p is None or type(b_p) in _PLAIN)
        and not torch._C._is_any_autocast_enabled()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not is_in_torch_dispatch_mode()
        and not x.is_meta
    )


def _composes(tensors: tuple[Any, ...]) -> bool:
    """Whether plain torch operations take the call, because a Function can't follow it."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    if torch.compiler.is_compiling():
        return False
    return any(
        tensor is not None and type(tensor) not in _PLAIN and is_traceable_wrapper_subclass(tensor)
        for tensor in tensors
    )


def is_small(
    x: Tensor, weight: Tensor, w_p: Tensor | None, bias: Tensor | None, b_p: Tensor | None
) -> bool:
    """Whether a call is so small that torch's own composition is the fastest way on the CPU.

    Here a property of a tensor costs what a hundredth of the layer does, so only what torch would
    take without a word is looked at; the rest it refuses by itself, and `complain` says why.
    Autocast and transforms go through a composition without our help.
    """
    if type(x) not in _PLAIN or type(weight) not in _PLAIN or torch.compiler.is_compiling():
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
        and not paths.INTERPRETED
    )


def _is_on_cpu(tensor: Tensor, dim: int) -> bool:
    return type(tensor) in _PLAIN and tensor.is_cpu and tensor.dim() == dim


def _opaque(tensor: Tensor) -> bool:
    """Whether something watches operators, so that the registered ones must be called."""
    return (
        torch.compiler.is_compiling()
        or type(tensor) not in _PLAIN
        or tensor.is_meta
        or is_in_torch_dispatch_mode()
    )


def _is_ordinary_gradient(gradient: Tensor) -> bool:
    """Whether backward runs on plain tensors, is not differentiated, and nothing watches it."""
    return (
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and type(gradient) in _PLAIN
        and not gradient.is_meta
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._functorch.is_legacy_batchedtensor(gradient)
        and not is_in_torch_dispatch_mode()
    )


def _differentiated(gradient: Tensor) -> bool:
    """Whether backward itself must be differentiable, or runs under a vmap over gradients."""
    return not torch.compiler.is_compiling() and (
        torch.is_grad_enabled()
        or torch._C._are_functorch_transforms_active()
        # What `is_grads_batched=True` hands to backward.
        or torch._C._functorch.is_legacy_batchedtensor(gradient)
    )


def _requires_grad(
    x: Tensor, weight: Tensor, w_p: Tensor | None, bias: Tensor | None, b_p: Tensor | None
) -> bool:
    return (
        x.requires_grad
        or weight.requires_grad
        or (w_p is not None and w_p.requires_grad)
        or (bias is not None and bias.requires_grad)
        or (b_p is not None and b_p.requires_grad)
    )


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
