"""What surrounds a call of the layer: transforms, autocast, modes that watch operators, a graph.

An autograd Function follows plain tensors alone. What else may come is told apart here, in few and
large expressions: where elements are few, a call of a helper costs a hundredth of the layer.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode, is_traceable_wrapper_subclass

PLAIN = (Tensor, torch.nn.Parameter)

# What torch's own compiler asks before it overwrites what a graph saved: whether this backward
# pass is one that leaves the graph to be walked again.
graph_is_kept = torch._C._autograd._get_current_graph_task_keep_graph


def is_ordinary(
    x: Tensor, weight: Tensor, w_p: Tensor | None, bias: Tensor | None, b_p: Tensor | None
) -> bool:
    """Whether plain tensors come, and nothing transforms, casts or watches the call."""
    return (
        not torch.compiler.is_compiling()
        and type(x) in PLAIN
        and type(weight) in PLAIN
        and (w_p is None or type(w_p) in PLAIN)
        and (bias is None or type(bias) in PLAIN)
        and (b_p is None or type(b_p) in PLAIN)
        and not torch._C._is_any_autocast_enabled()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not is_in_torch_dispatch_mode()
        and not x.is_meta
    )


def is_undisturbed() -> bool:
    """Whether nothing transforms or casts a call of plain tensors outside of a compiler."""
    return (
        not torch._C._is_any_autocast_enabled()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def composes(tensors: tuple[Any, ...]) -> bool:
    """Whether plain torch operations take the call, because a Function can't follow it."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    if torch.compiler.is_compiling():
        return False
    return any(
        tensor is not None and type(tensor) not in PLAIN and is_traceable_wrapper_subclass(tensor)
        for tensor in tensors
    )


def opaque(tensor: Tensor) -> bool:
    """Whether something watches operators, so that the registered ones must be called."""
    return (
        torch.compiler.is_compiling()
        or type(tensor) not in PLAIN
        or tensor.is_meta
        or is_in_torch_dispatch_mode()
    )


def is_ordinary_gradient(gradient: Tensor) -> bool:
    """Whether backward runs on plain tensors, is not differentiated, and nothing watches it."""
    return (
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and type(gradient) in PLAIN
        and not gradient.is_meta
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._functorch.is_legacy_batchedtensor(gradient)
        and not is_in_torch_dispatch_mode()
    )


def differentiated(gradient: Tensor) -> bool:
    """Whether backward itself must be differentiable, or runs under a vmap over gradients."""
    return not torch.compiler.is_compiling() and (
        torch.is_grad_enabled()
        or torch._C._are_functorch_transforms_active()
        # What `is_grads_batched=True` hands to backward.
        or torch._C._functorch.is_legacy_batchedtensor(gradient)
    )


def requires_grad(
    x: Tensor, weight: Tensor, w_p: Tensor | None, bias: Tensor | None, b_p: Tensor | None
) -> bool:
    """Whether backward may come here."""
    return (
        x.requires_grad
        or weight.requires_grad
        or (w_p is not None and w_p.requires_grad)
        or (bias is not None and bias.requires_grad)
        or (b_p is not None and b_p.requires_grad)
    )
