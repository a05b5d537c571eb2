"""Interaction matrices: each logit of a bilinear layer as an exact quadratic form of its input."""

from collections.abc import Sequence

import torch
from torch import Tensor


def interaction_matrices(
    w_l: Tensor, w_r: Tensor, w_p: Tensor, outputs: Sequence[int] | None = None
) -> Tensor:
    """Q_c = ½(B_c + B_cᵀ), B_c = W_lᵀ diag(W_p[c]) W_r, so that xᵀ Q_c x is logit c exactly.

    w_l, w_r (…, d, d_in) and w_p (…, d_out, d) give (…, n_outputs, d_in, d_in), leading dimensions
    being models; `outputs` None takes all of d_out. (Pearce et al. 2024, arXiv 2410.08417, §3.)
    """
    if outputs is not None:
        w_p = w_p[..., list(outputs), :]
    b = torch.einsum("...hi,...oh,...hj->...oij", w_l, w_p, w_r)
    return (b + b.mT) / 2
