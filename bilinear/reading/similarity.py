"""How alike two models compute, whatever their widths."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from bilinear.reading.interactions import logit_table

Weights = tuple[Tensor, Tensor, Tensor]


def functional_similarity(models: Iterable[Weights]) -> Tensor:
    """Cosine between the logits of every two models on all pairs of one-hots, (n, n) float64.

    Each model is (w_l (d, 2p), w_r (d, 2p), w_p (p, d)), d its own. The mean over outputs, which no
    softmax sees, is taken away first. Blind to the parts of Q that meet no data.
    """
    rows = []
    for w_l, w_r, w_p in models:
        table = logit_table(w_l, w_r, w_p - w_p.mean(dim=-2, keepdim=True))
        rows.append(torch.nn.functional.normalize(table.double().flatten(), dim=0).float())
    unit = torch.stack(rows)
    return (unit @ unit.mT).double().clamp(-1, 1)


def tensor_similarity(models: Sequence[Weights]) -> Tensor:
    """Cosine between the interaction tensors T[c, i, j] = Q_c[i, j] of every two, (n, n) float64.

    For any input, not one-hot pairs alone; from Gram matrices of hidden units, T never formed.
    """
    doubles = [(w_l.double(), w_r.double(), w_p.double()) for w_l, w_r, w_p in models]
    n = len(doubles)
    inner = torch.empty(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(i + 1):
            inner[i, j] = inner[j, i] = _inner_product(doubles[i], doubles[j])
    norm = inner.diagonal().sqrt()
    return inner / (norm[:, None] * norm)


def _inner_product(one: Weights, other: Weights) -> Tensor:
    """⟨T, T'⟩ = Σ_{h, h'} (p_h·p'_h') ½[(l·l')(r·r') + (l·r')(r·l')]."""
    (l, r, p), (l2, r2, p2) = one, other  # noqa: E741
    hidden = (l @ l2.mT) * (r @ r2.mT) + (l @ r2.mT) * (r @ l2.mT)
    return ((p.mT @ p2) * hidden).sum() / 2
