"""Interaction matrices: each logit of a bilinear layer as an exact quadratic form of its input.

Two views of the same weights. The *full* matrix Q_c (d_in, d_in) holds every product of two inputs.
On pairs of one-hot inputs, x = [e_a; e_b], only part of it ever meets data: the logit is
Q_aa[a, a] + Q_bb[b, b] + 2 Q_ab[a, b], so the off-diagonals of the aa and bb blocks are free (a
gauge), while they still enter eigenvalues and similarities of Q. The *functional* table, the p × p
logits of output c, holds what the data sees and nothing else.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from einops import einsum, rearrange
from torch import Tensor, nn


def interaction_matrices(
    w_l: Tensor, w_r: Tensor, w_p: Tensor, outputs: Sequence[int] | None = None
) -> Tensor:
    """Q_c = ½(B_c + B_cᵀ), B_c = W_lᵀ diag(W_p[c]) W_r, so that xᵀ Q_c x is logit c exactly.

    w_l, w_r (…, d, d_in) and w_p (…, d_out, d) give (…, n_outputs, d_in, d_in), leading dimensions
    being models; `outputs` None takes all of d_out. (Pearce et al. 2024, arXiv 2410.08417, §3.)
    """
    if outputs is not None:
        w_p = w_p[..., list(outputs), :]
    b = _bilinear_form(w_l, w_p, w_r)
    return (b + b.mT) / 2


def _bilinear_form(left: Tensor, w_p: Tensor, right: Tensor) -> Tensor:
    """Σ_h w_p[o, h] left[h, i] right[h, j]."""
    pattern = "... hidden in1, ... out hidden, ... hidden in2 -> ... out in1 in2"
    return einsum(left, w_p, right, pattern)


class Readable(Protocol):
    """What a model needs to be read: w_l and w_r (d, d_in), w_p (d_out, d)."""

    @property
    def w_l(self) -> Tensor: ...  # noqa: D102
    @property
    def w_r(self) -> Tensor: ...  # noqa: D102
    @property
    def w_p(self) -> Tensor: ...  # noqa: D102


def interactions_of(model: Readable, outputs: Sequence[int] | None = None) -> Tensor:
    """Interaction matrices (n_outputs, d_in, d_in) of any model with w_l, w_r and w_p, detached.

    Raises:
        ValueError: the model has a gate other than the identity.
    """
    gate = getattr(model, "gate", None)
    if not (gate is None or gate == "identity" or isinstance(gate, nn.Identity)):
        raise ValueError(
            f"model: expected the identity gate, got {gate}: its outputs are no quadratic forms of "
            "the input, so no interaction matrices give them"
        )
    w_l, w_r, w_p = (w.detach() for w in (model.w_l, model.w_r, model.w_p))
    return interaction_matrices(w_l, w_r, w_p, outputs)


def direction(w_p: Tensor, directions: Tensor) -> Tensor:
    """Pull directions in output space, (…, n, d_out), back to rows (…, n, d) to use as a `w_p`.

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


def cross_block(
    w_l: Tensor, w_r: Tensor, w_p: Tensor, outputs: Sequence[int] | None = None
) -> Tensor:
    """Q_ab, the part of Q in which a meets b, without forming Q: (…, n_outputs, p, p)."""
    check_weights(w_l, w_r, pairs=True)
    if outputs is not None:
        w_p = w_p[..., list(outputs), :]
    (l_a, l_b), (r_a, r_b) = w_l.chunk(2, dim=-1), w_r.chunk(2, dim=-1)
    return (_bilinear_form(l_a, w_p, r_b) + _bilinear_form(r_a, w_p, l_b)) / 2


def logit_table(
    w_l: Tensor, w_r: Tensor, w_p: Tensor, outputs: Sequence[int] | None = None
) -> Tensor:
    """Functional table: logit of each output on every pair, (…, n_outputs, p, p), entry [a, b]."""
    check_weights(w_l, w_r, pairs=True)
    if outputs is not None:
        w_p = w_p[..., list(outputs), :]
    hidden = hidden_table(w_l, w_r)
    return einsum(w_p, hidden, "... out hidden, ... hidden a b -> ... out a b")


def hidden_table(w_l: Tensor, w_r: Tensor) -> Tensor:
    """Give the hidden units h on every pair, (…, d, p, p), entry [a, b]."""
    check_weights(w_l, w_r, pairs=True)
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


def check_weights(w_l: Tensor, w_r: Tensor, *, pairs: bool = False) -> None:
    """Raise ValueError unless both sides have one shape, (…, d, d_in), d_in even for pairs."""
    if w_l.shape != w_r.shape or w_l.ndim < 2:
        raise ValueError(
            f"w_l, w_r: expected one shape (…, d, d_in), got {tuple(w_l.shape)} and "
            f"{tuple(w_r.shape)}"
        )
    if pairs and w_l.shape[-1] % 2:
        raise ValueError(f"w_l: expected d_in = 2p for pairs of one-hots, got {w_l.shape[-1]}")
