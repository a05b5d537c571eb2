"""From tensors of any leading shape to the rows that implementations take, and back."""

import torch
from torch import Tensor

from bilinear.layer.call import Backward, Forward, Gradients


def as_rows(x: Tensor) -> Tensor:
    """(…, n) as (m, n)."""
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def of_shape(made: Tensor, shape: torch.Size) -> Tensor:
    """(m, n) as (…, n), with the leading sizes of `shape`."""
    return made if len(shape) == 2 else made.view(*shape[:-1], made.shape[1])


def forward_of(shape: torch.Size, run: Forward) -> Forward:
    """`run` for x of this shape; out has its leading sizes."""
    if len(shape) == 2:
        return run

    def reshaped(
        x: Tensor, weight: Tensor, bias: Tensor | None, w_p: Tensor | None, b_p: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        out, preact = run(as_rows(x), weight, bias, w_p, b_p)
        return of_shape(out, shape), preact

    return reshaped


def backward_of(shape: torch.Size, run: Backward) -> Backward:
    """`run` for x and dx of this shape, and dout of its leading sizes."""
    if len(shape) == 2:
        return run

    def reshaped(
        dout: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        w_p: Tensor | None,
        preact: Tensor | None,
    ) -> Gradients:
        only = [preact]
        del preact  # for `run` to free
        found = run(as_rows(dout), as_rows(x), weight, bias, w_p, only.pop())
        dx = found[0]
        return found if dx is None else (of_shape(dx, shape), *found[1:])

    return reshaped
