"""Detects compilers, transforms, autocast, dispatch modes and tensor subclasses around a call.

An autograd Function works on plain tensors alone. The checks are few and large expressions, because
one call of a helper costs a hundredth of a call of the layer on a small input.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode, is_traceable_wrapper_subclass

from bilinear.layer.call import PLAIN, TRACED, TRANSFORMED

_TYPES = (Tensor, torch.nn.Parameter)


def is_undisturbed() -> bool:
    """Whether no compiler, transform, autocast or dispatch mode is active."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._is_any_autocast_enabled()
        or is_in_torch_dispatch_mode()
    )


def are_plain(*tensors: Any) -> bool:
    """Whether each is None or a plain tensor or Parameter with memory."""
    return all(t is None or (type(t) in _TYPES and not t.is_meta) for t in tensors)


def context_of(*tensors: Any) -> str:
    """PLAIN, TRACED or TRANSFORMED (see `call`), of a call with these arguments."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return TRANSFORMED
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        return TRACED
    if any(is_traceable_wrapper_subclass(tensor) for tensor in tensors):
        return TRANSFORMED
    return PLAIN if are_plain(*tensors) else TRACED


def context_of_gradient(gradient: Tensor) -> str:
    """TRANSFORMED if backward itself must be differentiable, or runs under a vmap."""
    if torch.compiler.is_compiling():
        return TRACED
    if (
        torch.is_grad_enabled()
        or torch._C._are_functorch_transforms_active()
        # The kind of tensor that `is_grads_batched=True` gives to backward.
        or torch._C._functorch.is_legacy_batchedtensor(gradient)
    ):
        return TRANSFORMED
    if type(gradient) in _TYPES and not gradient.is_meta and not is_in_torch_dispatch_mode():
        return PLAIN
    return TRACED


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
