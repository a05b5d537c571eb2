"""Detects compilers, transforms, autocast, dispatch modes and tensor subclasses around a call.

An autograd Function works on plain tensors alone. The checks are few and large expressions, because
one call of a helper costs a hundredth of a call of the layer on a small input.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode, is_traceable_wrapper_subclass

from bilinear.kernels.places import are_plain
from bilinear.layer.call import PLAIN, TRACED, TRANSFORMED

# Bound once: to look each up by its module takes as long as to call it. Dynamo, while it traces,
# takes the first as true; whatever else traces passes tensors that are not plain.
_is_traced = torch.compiler.is_dynamo_compiling
_is_compiling, _is_grad_enabled = torch.compiler.is_compiling, torch.is_grad_enabled
_is_transformed = torch._C._are_functorch_transforms_active
_is_any_autocast_enabled = torch._C._is_any_autocast_enabled
_dispatch_modes = torch._C._len_torch_dispatch_stack


def is_undisturbed() -> bool:
    """Whether no compiler, transform, autocast or dispatch mode is active around plain tensors."""
    return not (
        _is_traced()
        or _is_transformed()
        or forward_ad._current_level >= 0
        or _is_any_autocast_enabled()
        or _dispatch_modes()
    )


def is_undisturbed_backward() -> bool:
    """The same of a backward of plain tensors, and whether it is not differentiated itself."""
    return not (
        _is_traced()
        or _is_grad_enabled()
        or _is_transformed()
        or forward_ad._current_level >= 0
        or _dispatch_modes()
    )


def context_of(*tensors: Any) -> str:
    """PLAIN, TRACED or TRANSFORMED (see `call`), of a call with these arguments."""
    if _is_transformed() or forward_ad._current_level >= 0:
        return TRANSFORMED
    if _is_compiling() or is_in_torch_dispatch_mode():
        return TRACED
    if any(is_traceable_wrapper_subclass(tensor) for tensor in tensors):
        return TRANSFORMED
    return PLAIN if are_plain(*tensors) else TRACED


def context_of_gradient(gradient: Tensor) -> str:
    """TRANSFORMED if backward itself must be differentiable or carry tangents, or is mapped."""
    if _is_compiling():
        return TRACED
    if (
        _is_grad_enabled()
        or _is_transformed()
        or forward_ad._current_level >= 0
        # The kind of tensor that `is_grads_batched=True` gives to backward.
        or torch._C._functorch.is_legacy_batchedtensor(gradient)
    ):
        return TRANSFORMED
    return PLAIN if are_plain(gradient) and not is_in_torch_dispatch_mode() else TRACED


def autocast(*tensors: Any) -> tuple[Any, ...]:
    """Tensors cast as an active autocast casts them for a matmul."""
    if not isinstance(tensors[0], Tensor):
        return tensors
    device = tensors[0].device
    return tuple(
        t.to(autocast_dtype(t.dtype, device)) if isinstance(t, Tensor) else t for t in tensors
    )


def autocast_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype to which autocast casts on a device: it leaves float64 and integers."""
    if not dtype.is_floating_point or dtype == torch.float64 or device.type == "meta":
        return dtype
    if not torch.is_autocast_enabled(device.type):
        return dtype
    return torch.get_autocast_dtype(device.type)
