"""Launchers of the whole MLP, out = ((x W_lᵀ + b_l) ∘ (x W_rᵀ + b_r)) W_pᵀ + b_p, for small d, d_out.

h never leaves the chip and the backward recomputes L and R from x: x is all that is saved.
Conventions (dtypes, strides, `precision`) are those of `dual`.
"""

from collections.abc import Collection, Mapping

from torch import Tensor

from .tiles import Tile

# Names of the gradients `mlp_backward` can be asked for, and the keys of what it returns.
GRADIENTS = ("x", "weight", "bias", "w_p", "b_p")


def mlp_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    w_p: Tensor,
    b_p: Tensor | None,
    *,
    precision: str,
    config: Tile | None = None,
) -> Tensor:
    """Return out (M, d_out): x (M, d_in); weight (2d, d_in); bias (2d,); w_p (d_out, d); b_p (d_out,).

    Right for every size; meant for d and d_out up to about 256 (L and R are formed anew for every
    256 columns of out).
    """
    raise NotImplementedError


def mlp_backward(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    w_p: Tensor,
    *,
    precision: str,
    needs: Collection[str] = GRADIENTS,
    config: Mapping[str, Tile] | None = None,
) -> dict[str, Tensor]:
    """Gradients of `mlp_forward` for dout (M, d_out): only those named in `needs`, no work for others.

    Keys and shapes: x (M, d_in), weight (2d, d_in), bias (2d,), w_p (d_out, d), b_p (d_out,).
    "bias" and "b_p" may be asked for whether or not the layer has biases. Sums over M in two
    ordered stages: the same bits every run.
    """
    raise NotImplementedError
