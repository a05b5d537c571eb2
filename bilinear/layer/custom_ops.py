"""The layer's steps as opaque operators (`torch.ops.bilinear.*`), with shapes for fake tensors.

For whatever traces or intercepts operators: torch.compile, torch.export, FakeTensor, meta tensors.
Plain eager calls go to `paths` directly, which saves tens of microseconds a call. An operator
may not return None, so those that keep [L, R] stand apart, and backwards return only the
gradients asked for.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bilinear.layer import select
from bilinear.layer.eager import Gradients

# mypy: disable-error-code="untyped-decorator"


@torch.library.custom_op("bilinear::forward", mutates_args=())
def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """h (M, d) for x (M, d_in), weight (2d, d_in), bias (2d,)."""
    return select.bilinear_forward(x, weight, bias, keep=False)[0]


@forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0] // 2)


@torch.library.custom_op("bilinear::forward_keep", mutates_args=())
def forward_keep(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """h (M, d) and lr = [L, R] (M, 2d)."""
    h, lr = select.bilinear_forward(x, weight, bias, keep=True)
    assert lr is not None
    return h, lr


@forward_keep.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    m, d = x.shape[0], weight.shape[0] // 2
    return x.new_empty(m, d), x.new_empty(m, 2 * d)


@torch.library.custom_op("bilinear::backward", mutates_args=())
def backward(
    dh: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lr: Tensor | None,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of x, weight and bias, those that `needs` names true, in this order."""
    return _present(select.bilinear_backward(dh, x, weight, bias, lr, needs))


@backward.register_fake
def _(
    dh: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lr: Tensor | None,
    needs: Sequence[bool],
) -> list[Tensor]:
    shapes = (x.shape, weight.shape, weight.shape[:1])
    return [x.new_empty(shape) for shape, need in zip(shapes, needs, strict=True) if need]


@torch.library.custom_op("bilinear::mlp_forward", mutates_args=())
def mlp_forward(
    x: Tensor, weight: Tensor, w_p: Tensor, bias: Tensor | None, b_p: Tensor | None
) -> Tensor:
    """Out (M, d_out) for w_p (d_out, d) and b_p (d_out,)."""
    return select.bilinear_mlp_forward(x, weight, w_p, bias, b_p, keep=False)[0]


@mlp_forward.register_fake
def _(x: Tensor, weight: Tensor, w_p: Tensor, bias: Tensor | None, b_p: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], w_p.shape[0])


@torch.library.custom_op("bilinear::mlp_forward_keep", mutates_args=())
def mlp_forward_keep(
    x: Tensor, weight: Tensor, w_p: Tensor, bias: Tensor | None, b_p: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Out (M, d_out) and lr = [L, R] (M, 2d)."""
    out, lr = select.bilinear_mlp_forward(x, weight, w_p, bias, b_p, keep=True)
    assert lr is not None
    return out, lr


@mlp_forward_keep.register_fake
def _(
    x: Tensor, weight: Tensor, w_p: Tensor, bias: Tensor | None, b_p: Tensor | None
) -> tuple[Tensor, Tensor]:
    m = x.shape[0]
    return x.new_empty(m, w_p.shape[0]), x.new_empty(m, weight.shape[0])


@torch.library.custom_op("bilinear::mlp_backward", mutates_args=())
def mlp_backward(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    w_p: Tensor,
    bias: Tensor | None,
    lr: Tensor | None,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of x, weight, w_p, bias and b_p, those that `needs` names true, in this order."""
    return _present(select.bilinear_mlp_backward(dout, x, weight, w_p, bias, lr, needs))


@mlp_backward.register_fake
def _(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    w_p: Tensor,
    bias: Tensor | None,
    lr: Tensor | None,
    needs: Sequence[bool],
) -> list[Tensor]:
    shapes = (x.shape, weight.shape, w_p.shape, weight.shape[:1], w_p.shape[:1])
    return [x.new_empty(shape) for shape, need in zip(shapes, needs, strict=True) if need]


def spread(found: Sequence[Tensor], needs: Sequence[bool]) -> Gradients:
    """Undo what leaving out unneeded gradients did: None where nothing was asked for."""
    remaining = iter(found)
    return tuple(next(remaining) if need else None for need in needs)


def _present(gradients: Gradients) -> list[Tensor]:
    return [gradient for gradient in gradients if gradient is not None]
