"""Shared output directions of a bilinear layer: the HOSVD of its order-3 interaction tensor.

T[c, i, j] = Q_c[i, j], unfolded along the output, is a (d_out, d_in²) matrix. Its left singular
vectors are directions of output space whose interaction matrices are orthogonal to one another, the
strongest first. (Higher-order SVD: De Lathauwer et al. 2000; on bilinear layers:
Pearce et al. 2024, arXiv 2410.08417, §3.) Neither T nor its unfolding is formed: T = Σ_h p_h ⊗ M_h
with M_h = ½(l_h r_hᵀ + r_h l_hᵀ), so its Gram matrix is W_p K W_pᵀ, K[h, h'] = ⟨M_h, M_h'⟩.
"""

from typing import NamedTuple

import torch
from einops import einsum
from torch import Tensor

from bilinear.reading.interactions import hidden_table
from bilinear.reading.weights import Readable, Weights, weights_of


class OutputDirections(NamedTuple):
    """Singular values (…, r), falling, and unit directions (…, d_out, r) as columns.

    r = min(d, d_out). `direction(w_p, directions.mT)` gives their rows to use as a `w_p`.
    """

    singular_values: Tensor
    directions: Tensor


def output_directions(model: Readable, *, functional: bool = False) -> OutputDirections:
    """Singular vectors of the interaction tensor along the output.

    `model` is a model, a state dict, or (w_l, w_r, w_p): w_l, w_r (…, d, d_in), w_p (…, d_out, d).
    `functional` takes the tensor of logits on all pairs of one-hots instead, which leaves out the
    entries of Q that no pair uses. In float64, because a Gram matrix squares the condition number.
    """
    weights = weights_of(model).double()
    gram = _functional_gram(weights) if functional else hidden_gram(weights)
    basis, coordinates = torch.linalg.qr(weights.w_p)
    values, vectors = torch.linalg.eigh(coordinates @ gram @ coordinates.mT)
    return OutputDirections(values.clamp(min=0).sqrt().flip(-1), basis @ vectors.flip(-1))


def hidden_gram(model: Readable) -> Tensor:
    """⟨M_h, M_h'⟩ = ½[(l·l')(r·r') + (l·r')(r·l')] of every two hidden units, (…, d, d)."""
    w_l, w_r, _ = weights_of(model)
    cross = w_l @ w_r.mT
    return ((w_l @ w_l.mT) * (w_r @ w_r.mT) + cross * cross.mT) / 2


def _functional_gram(weights: Weights) -> Tensor:
    """Sum over all pairs of h[a, b] h'[a, b], (…, d, d)."""
    hidden = hidden_table(weights)
    return einsum(hidden, hidden, "... one a b, ... other a b -> ... one other")
