"""Eigenpairs of interaction matrices, through the low-rank span of a bilinear layer's weights.

Q_c = ½(W_lᵀ D_c W_r + W_rᵀ D_c W_l), D_c = diag(W_p[c]), lives in the span of the 2d rows of
A = [W_l; W_r] (2d, d_in). Where 2d < d_in, an orthonormal basis U (d_in, r) of that span turns it
into a (2d, 2d) matrix with the same non-zero eigenvalues, S_c = Uᵀ Q_c U; eigenvectors are U times
those of S_c. Cost O(d_in d² + n_outputs d³) instead of O(n_outputs d_in³).
(Eigenvectors of interaction matrices: Pearce et al. 2024, arXiv 2410.08417, §3.)
"""

from typing import NamedTuple

import torch
from torch import Tensor

from bilinear.reading.interactions import check_weights, strict_accuracy


class Eigenpairs(NamedTuple):
    """Eigenvalues (…, n_outputs, r) by falling magnitude; vectors (…, n_outputs, d_in, r), columns.

    r = min(2d, d_in): the others are zero. Q = Σ_k values[k] vectors[:, k] vectors[:, k]ᵀ.
    """

    values: Tensor
    vectors: Tensor


def eigenpairs(
    w_l: Tensor, w_r: Tensor, w_p: Tensor, *, dtype: torch.dtype | None = None
) -> Eigenpairs:
    """Eigenpairs of the interaction matrix of every row of w_p, strongest first, sign kept.

    w_l, w_r (…, d, d_in) and w_p (…, n_outputs, d), leading dimensions being models; a row of w_p
    may be any direction of output space pulled back to the hidden units (`direction`). `dtype`
    float64 computes in double precision; None in the weights' own.
    """
    w_l, w_r, w_p = (w if dtype is None else w.to(dtype) for w in (w_l, w_r, w_p))
    basis, left, right = _span(w_l, w_r)
    values, vectors = torch.linalg.eigh(_small_problem(left, right, w_p))
    order = values.abs().argsort(dim=-1, descending=True)
    values = values.gather(-1, order)
    vectors = vectors.gather(-1, order.unsqueeze(-2).expand_as(vectors))
    return Eigenpairs(values, vectors if basis is None else basis.unsqueeze(-3) @ vectors)


def eigenvalues(
    w_l: Tensor, w_r: Tensor, w_p: Tensor, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Give the eigenvalues alone, (…, n_outputs, r), as `eigenpairs` does, at a fraction of it."""
    w_l, w_r, w_p = (w if dtype is None else w.to(dtype) for w in (w_l, w_r, w_p))
    _, left, right = _span(w_l, w_r)
    values = torch.linalg.eigvalsh(_small_problem(left, right, w_p))
    return values.gather(-1, values.abs().argsort(dim=-1, descending=True))


def _span(w_l: Tensor, w_r: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    """Orthonormal basis (…, d_in, r) of the weights' rows, and both sides' coordinates in it.

    Rows that may span all of input space have the standard basis: None.
    """
    check_weights(w_l, w_r)
    d, d_in = w_l.shape[-2:]
    if 2 * d >= d_in:
        return None, w_l, w_r
    basis, coordinates = torch.linalg.qr(torch.cat([w_l, w_r], dim=-2).mT)
    left, right = coordinates.mT.split(d, dim=-2)
    return basis, left, right


def _small_problem(left: Tensor, right: Tensor, w_p: Tensor) -> Tensor:
    """Uᵀ Q_c U for every output: (…, n_outputs, r, r)."""
    b = left.mT.unsqueeze(-3) @ (w_p.unsqueeze(-1) * right.unsqueeze(-3))
    return (b + b.mT) / 2


def eigenvalue_shares(values: Tensor) -> Tensor:
    """Each eigenvalue's share of Σ|λ|, (…, r) → (…, r); 0 where all are 0."""
    magnitude = values.abs()
    total = magnitude.sum(dim=-1, keepdim=True)
    return magnitude / torch.where(total == 0, 1, total)


def effective_rank(values: Tensor) -> Tensor:
    """exp of the entropy of the eigenvalue shares, (…, r) → (…): how many eigenvectors count.

    (Roy & Vetterli 2007, with magnitudes for singular values.)
    """
    shares = eigenvalue_shares(values)
    return torch.exp(-torch.special.xlogy(shares, shares).sum(dim=-1))


def truncated_logits(pairs: Eigenpairs, x: Tensor, n_kept: int) -> Tensor:
    """Logits of x (n, d_in) with each output's `n_kept` strongest eigenvectors: (…, n, n_outputs).

    Σ_{k < n_kept} λ_ck (v_ck · x)².
    """
    values, vectors = pairs.values[..., :n_kept], pairs.vectors[..., :n_kept]
    projections = x.to(vectors.dtype) @ vectors  # (…, n_outputs, n, n_kept)
    return (projections.square() @ values.unsqueeze(-1)).squeeze(-1).mT


def truncation_accuracy(pairs: Eigenpairs, x: Tensor, labels: Tensor) -> Tensor:
    """Accuracy against the number of eigenvectors kept an output: (…, r + 1), entry k for k kept.

    x (n, d_in), labels (n,). A tie with a wrong output counts as wrong, so entry 0 is 0.
    """
    values, vectors = pairs
    x = x.to(values.dtype)
    logits = torch.zeros(
        *values.shape[:-2], len(x), values.shape[-2], dtype=values.dtype, device=values.device
    )
    accuracies = [strict_accuracy(logits, labels).to(values.dtype)]
    for k in range(values.shape[-1]):
        projection = vectors[..., k] @ x.mT  # (…, n_outputs, n)
        logits = logits + (values[..., k].unsqueeze(-1) * projection.square()).mT
        accuracies.append(strict_accuracy(logits, labels).to(values.dtype))
    return torch.stack(accuracies, dim=-1)
