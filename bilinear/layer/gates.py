"""The gates g of h = g(L) ∘ R, and the product with its gradient in torch's operations.

    dL = dh ∘ R ∘ g′(L)    dR = dh ∘ g(L)

h and its gradient need [L, R] alone, whatever the gate.
"""

import torch
from torch import Tensor


def product(left: Tensor, right: Tensor, gate: str, out: Tensor | None = None) -> Tensor:
    """h = g(L) ∘ R, (…, d) each; written to `out` if that is given."""
    return left * right if out is None else torch.mul(left, right, out=out)


def product_backward(
    dh: Tensor, left: Tensor, right: Tensor, gate: str, out: Tensor | None = None
) -> Tensor:
    """[dL, dR] (…, 2d) for dh, L and R (…, d); written to `out` if that is given."""
    if out is None:
        return torch.cat((dh * right, dh * left), -1)
    d = dh.shape[-1]
    torch.mul(dh, right, out=out[..., :d])
    torch.mul(dh, left, out=out[..., d:])
    return out
