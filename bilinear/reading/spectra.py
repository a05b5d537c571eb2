"""Eigenpairs of interaction matrices, through the low-rank span of a bilinear layer's weights.

The rows and columns of Q_c = ½(W_lᵀ D_c W_r + W_rᵀ D_c W_l), D_c = diag(W_p[c]), lie in the span of
the 2d rows of [W_l; W_r]. Where 2d < d_in, an orthonormal basis U (d_in, r) of that span turns Q_c
into a (2d, 2d) matrix with the same non-zero eigenvalues, S_c = Uᵀ Q_c U; eigenvectors are U times
those of S_c. Cost O(d_in d² + n_outputs d³) instead of O(n_outputs d_in³).
(Eigenvectors of interaction matrices: Pearce et al. 2024, arXiv 2410.08417, §3.)
"""

from typing import NamedTuple

import torch
from torch import Tensor

from bilinear.reading.interactions import strict_accuracy
from bilinear.reading.weights import Outputs, Readable, Weights, drop_output, weights_of


class Eigenpairs(NamedTuple):
    """Eigenvalues (…, n_outputs, r) by falling magnitude; vectors (…, n_outputs, d_in, r), columns.

    r = min(2d, d_in): the others are zero. Q = Σ_k values[k] vectors[:, k] vectors[:, k]ᵀ.
    """

    values: Tensor
    vectors: Tensor


def eigenpairs(
    model: Readable, output: Outputs = None, *, dtype: torch.dtype | None = None
) -> Eigenpairs:
    """Eigenpairs of the interaction matrix of every output, strongest first, sign kept.

    Args:
        model: a model, a state dict, or (w_l, w_r, w_p): w_l, w_r (…, d, d_in), w_p (…, d_out, d),
            leading dimensions being models. A row of w_p may stand for any direction of output
            space (`interactions.direction`).
        output: None for all, a list of outputs, or a single one, whose pairs have no n_outputs.
        dtype: dtype to compute in; None is that of the weights.

    Examples:
        >>> from bilinear.reading import exact_circuit, spectra
        >>> circuit = exact_circuit.exact_circuit(7)
        >>> values, vectors = spectra.eigenpairs(circuit, output=5)
        >>> values.shape, vectors.shape
        (torch.Size([4]), torch.Size([14, 4]))
    """
    weights = _cast(weights_of(model, output), dtype)
    basis, left, right = _span(weights)
    values, vectors = torch.linalg.eigh(_small_problem(left, right, weights.w_p))
    order = values.abs().argsort(dim=-1, descending=True)
    values = values.gather(-1, order)
    vectors = vectors.gather(-1, order.unsqueeze(-2).expand_as(vectors))
    vectors = vectors if basis is None else basis.unsqueeze(-3) @ vectors
    return Eigenpairs(drop_output(values, output, -2), drop_output(vectors, output, -3))


def eigenvalues(
    model: Readable, output: Outputs = None, *, dtype: torch.dtype | None = None
) -> Tensor:
    """The eigenvalues of `eigenpairs`, (…, n_outputs, r), without the cost of the vectors."""
    weights = _cast(weights_of(model, output), dtype)
    _, left, right = _span(weights)
    values = torch.linalg.eigvalsh(_small_problem(left, right, weights.w_p))
    values = values.gather(-1, values.abs().argsort(dim=-1, descending=True))
    return drop_output(values, output, -2)


def _cast(weights: Weights, dtype: torch.dtype | None) -> Weights:
    return weights if dtype is None else Weights(*(w.to(dtype) for w in weights))


def _span(weights: Weights) -> tuple[Tensor | None, Tensor, Tensor]:
    """Orthonormal basis (…, d_in, r) of the weights' rows, and both sides' coordinates in it.

    The basis is None if the rows may span all of input space: then it is the standard basis.
    """
    w_l, w_r, _ = weights
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
