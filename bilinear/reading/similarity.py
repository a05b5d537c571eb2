"""Similarity of what models compute, whatever their widths."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from bilinear.reading.interactions import logit_table
from bilinear.reading.weights import Readable, Weights, weights_of


def functional_similarity(models: Iterable[Readable]) -> Tensor:
    """Cosine between the logits of every two models on all pairs of one-hots, (n, n) float64.

    Each is a model, a state dict, or (w_l (d, 2p), w_r (d, 2p), w_p (p, d)); d may differ. The mean
    over outputs, on which no softmax depends, is subtracted first. Parts of Q that no pair uses do
    not count.

    Raises:
        TypeError: one model instead of several.
        ValueError: models of different p.

    Examples:
        >>> import torch
        >>> from bilinear.reading import exact_circuit, similarity
        >>> circuits = [exact_circuit.exact_circuit(7, k) for k in (1, 2)]
        >>> similarity.functional_similarity(circuits).round(decimals=3).diagonal()
        tensor([1., 1.], dtype=torch.float64)
    """
    rows = []
    for w_l, w_r, w_p in _several(models):
        table = logit_table((w_l, w_r, w_p - w_p.mean(dim=-2, keepdim=True)))
        rows.append(torch.nn.functional.normalize(table.double().flatten(), dim=0).float())
    unit = torch.stack(rows)
    return (unit @ unit.mT).double().clamp(-1, 1)


def tensor_similarity(models: Iterable[Readable]) -> Tensor:
    """Cosine between the interaction tensors T[c, i, j] = Q_c[i, j] of every two, (n, n) float64.

    For any input, not one-hot pairs alone. Computed from Gram matrices of hidden units, without
    forming T. Arguments and errors are those of `functional_similarity`.
    """
    doubles = [weights.double() for weights in _several(models)]
    n = len(doubles)
    inner = torch.empty(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(i + 1):
            inner[i, j] = inner[j, i] = _inner_product(doubles[i], doubles[j])
    norm = inner.diagonal().sqrt()
    return inner / (norm[:, None] * norm)


def _several(models: Iterable[Readable]) -> list[Weights]:
    """Weights of every model; raises what `functional_similarity` lists."""
    one = isinstance(models, Mapping | Tensor) or not isinstance(models, Iterable)
    found = [] if one else list(models)
    if one or any(isinstance(item, Tensor) for item in found):
        kind = "one model's weights" if isinstance(models, tuple | list) else type(models).__name__
        raise TypeError(f"models: expected a list of models to compare, got {kind}")
    if not found:
        raise ValueError("models: expected a list of models to compare, got an empty one")
    weights = [weights_of(model) for model in found]
    inputs = sorted({(w.w_l.shape[-1], w.w_p.shape[-2]) for w in weights})
    if len(inputs) > 1:
        raise ValueError(f"models: expected one (d_in, d_out), got {inputs}")
    return weights


def _inner_product(one: Weights, other: Weights) -> Tensor:
    """⟨T, T'⟩ = Σ_{h, h'} (p_h·p'_h') ½[(l·l')(r·r') + (l·r')(r·l')]."""
    (l, r, p), (l2, r2, p2) = one, other  # noqa: E741
    hidden = (l @ l2.mT) * (r @ r2.mT) + (l @ r2.mT) * (r @ l2.mT)
    return ((p.mT @ p2) * hidden).sum() / 2
