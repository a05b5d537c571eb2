"""The layer as plain differentiable torch operations.

What every transform of torch sees through: double backward, forward mode, `torch.func`, tensor
subclasses such as DTensor. The fused paths are checked against it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Gradients of (x, weight, bias) and of (x, weight, w_p, bias, b_p); None where not asked for.
Gradients = tuple[Tensor | None, ...]


def bilinear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """h = (x W_lᵀ + b_l) ∘ (x W_rᵀ + b_r): (…, d_in) → (…, d), for weight (2d, d_in)."""
    left, right = F.linear(x, weight, bias).chunk(2, dim=-1)
    return left * right


def bilinear_mlp(
    x: Tensor,
    weight: Tensor,
    w_p: Tensor,
    bias: Tensor | None = None,
    b_p: Tensor | None = None,
) -> Tensor:
    """out = h W_pᵀ + b_p: (…, d_in) → (…, d_out), for weight (2d, d_in) and w_p (d_out, d)."""
    return F.linear(bilinear(x, weight, bias), w_p, b_p)


def bilinear_gradients(
    dh: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, needs: tuple[bool, ...]
) -> Gradients:
    """Gradients of `bilinear` for dh (M, d) and x (M, d_in), themselves differentiable."""
    left, right = F.linear(x, weight, bias).chunk(2, dim=-1)
    dlr = torch.cat((dh * right, dh * left), dim=-1)
    return (
        dlr @ weight if needs[0] else None,
        dlr.t() @ x if needs[1] else None,
        dlr.sum(0) if needs[2] else None,
    )


def bilinear_mlp_gradients(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    w_p: Tensor,
    bias: Tensor | None,
    needs: tuple[bool, ...],
) -> Gradients:
    """Gradients of `bilinear_mlp` for dout (M, d_out), x (M, d_in); differentiable themselves."""
    dx, dweight, dbias = bilinear_gradients(
        dout @ w_p, x, weight, bias, (needs[0], needs[1], needs[3])
    )
    dw_p = dout.t() @ bilinear(x, weight, bias) if needs[2] else None
    return dx, dweight, dw_p, dbias, dout.sum(0) if needs[4] else None
