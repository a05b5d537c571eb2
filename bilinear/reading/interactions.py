"""Interaction matrices: each logit of a bilinear layer as an exact quadratic form of its input.

Two views of the same weights. The *full* matrix Q_c (d_in, d_in) holds every product of two inputs.
On pairs of one-hot inputs, x = [e_a; e_b], only part of it is used: the logit is
Q_aa[a, a] + Q_bb[b, b] + 2 Q_ab[a, b], so the off-diagonals of the aa and bb blocks are free (a
gauge), though eigenvalues and similarities of Q depend on them. The *functional* table, the p × p
logits of output c, holds what the pairs determine and nothing else.
"""

from typing import NamedTuple

import torch
from einops import einsum, rearrange
from torch import Tensor

from bilinear.reading.weights import Outputs, Readable, drop_output, weights_of


def interaction_matrices(model: Readable, output: Outputs = None) -> Tensor:
    """Q_c = ½(B_c + B_cᵀ), B_c = W_lᵀ diag(W_p[c]) W_r, so that xᵀ Q_c x is logit c exactly.

    Args:
        model: a model, a state dict, or (w_l, w_r, w_p): w_l, w_r (…, d, d_in), w_p (…, d_out, d),
            leading dimensions being models. Biases are ignored.
        output: None for all, a list of outputs, or a single one.

    Returns:
        (…, n_outputs, d_in, d_in), without n_outputs for a single output.

    Examples:
        >>> import torch
        >>> from bilinear import BilinearMLP
        >>> from bilinear.reading import interactions
        >>> mlp, x = BilinearMLP(6, 4, 3), torch.randn(6)
        >>> q = interactions.interaction_matrices(mlp, output=2)
        >>> torch.allclose(x @ q @ x, mlp(x)[2], atol=1e-5)
        True

    (Pearce et al. 2024, arXiv 2410.08417, §3.)
    """
    w_l, w_r, w_p = weights_of(model, output)
    b = _bilinear_form(w_l, w_p, w_r)
    return drop_output((b + b.mT) / 2, output, -3)


def _bilinear_form(left: Tensor, w_p: Tensor, right: Tensor) -> Tensor:
    """Σ_h w_p[o, h] left[h, i] right[h, j]."""
    pattern = "... hidden in1, ... out hidden, ... hidden in2 -> ... out in1 in2"
    return einsum(left, w_p, right, pattern)


def direction(w_p: Tensor, directions: Tensor) -> Tensor:
    """Turn directions in output space, (…, n, d_out), into rows (…, n, d) to use as a `w_p`.

    The interaction matrix of direction u is Σ_c u_c Q_c; one-hot u is output c alone.
    """
    return directions.to(w_p.dtype) @ w_p


class Blocks(NamedTuple):
    """Blocks of an interaction matrix over x = [e_a; e_b], (…, p, p) each; Q_ba is Q_abᵀ."""

    aa: Tensor
    ab: Tensor
    bb: Tensor


def blocks(q: Tensor) -> Blocks:
    """Split interaction matrices (…, 2p, 2p) into the a and b halves of their input."""
    size = q.shape[-1]
    if q.shape[-2] != size or size % 2:
        raise ValueError(f"q: expected (…, 2p, 2p), got {tuple(q.shape)}")
    p = size // 2
    return Blocks(q[..., :p, :p], q[..., :p, p:], q[..., p:, p:])


def cross_block(model: Readable, output: Outputs = None) -> Tensor:
    """Q_ab, the products of a and b, without forming Q: (…, n_outputs, p, p).

    Arguments as in `interaction_matrices`.
    """
    w_l, w_r, w_p = weights_of(model, output, pairs=True)
    (l_a, l_b), (r_a, r_b) = w_l.chunk(2, dim=-1), w_r.chunk(2, dim=-1)
    both = (_bilinear_form(l_a, w_p, r_b) + _bilinear_form(r_a, w_p, l_b)) / 2
    return drop_output(both, output, -3)


def logit_table(model: Readable, output: Outputs = None) -> Tensor:
    """Functional table: logit of each output on every pair, (…, n_outputs, p, p), entry [a, b].

    Arguments as in `interaction_matrices`.
    """
    weights = weights_of(model, output, pairs=True)
    pattern = "... out hidden, ... hidden a b -> ... out a b"
    return drop_output(einsum(weights.w_p, hidden_table(weights), pattern), output, -3)


def hidden_table(model: Readable) -> Tensor:
    """Return the hidden units h on every pair, (…, d, p, p), entry [a, b]."""
    w_l, w_r, _ = weights_of(model, pairs=True)
    (l_a, l_b), (r_a, r_b) = w_l.chunk(2, dim=-1), w_r.chunk(2, dim=-1)
    left = l_a.unsqueeze(-1) + l_b.unsqueeze(-2)
    return left * (r_a.unsqueeze(-1) + r_b.unsqueeze(-2))


def table_accuracy(tables: Tensor) -> Tensor:
    """Share of all p² pairs that tables (…, p, p, p) of (a + b) mod p get right, ties wrong: (…).

    Dimensions: output c, a, b.
    """
    p = tables.shape[-1]
    a = torch.arange(p, device=tables.device)
    logits = rearrange(tables, "... out a b -> ... (a b) out")
    return strict_accuracy(logits, ((a[:, None] + a) % p).flatten())


def strict_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of rows whose label's logit is above every other, ties wrong: float64, (…).

    logits (…, n, n_outputs), labels (n,).
    """
    label = labels.expand(logits.shape[:-1]).unsqueeze(-1)
    right = logits.gather(-1, label)
    others = logits.scatter(-1, label, -torch.inf).amax(dim=-1, keepdim=True)
    return (right > others).double().mean(dim=(-2, -1))
