"""How fast are interaction matrices and eigenpairs, within the weights' span and densely?

P = 64 (d_in = 128), float32, random weights, every remainder, on all cores. The dense way builds
each matrix by one einsum and calls `torch.linalg.eigh`; at d = 64 both ways solve 128 × 128
matrices.

    pytest bench/suites/bench_interactions.py --benchmark-only
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.measure.turns import Contestants, enter
from bilinear.reading.interactions import interaction_matrices
from bilinear.reading.spectra import eigenpairs

P = 64
WAYS = ("span", "dense")


def _weights(d: int) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(d)
    w_l, w_r, w_p = (
        torch.randn(*shape, generator=source) for shape in ((d, 2 * P), (d, 2 * P), (P, d))
    )
    return w_l, w_r, w_p


def _both(*weights: Tensor) -> tuple[Tensor, Any]:
    return interaction_matrices(weights), eigenpairs(weights)


def _dense(*weights: Tensor) -> tuple[Tensor, Any]:
    q = torch.einsum("hi,oh,hj->oij", weights[0], weights[2], weights[1])
    q = (q + q.mT) / 2
    return q, torch.linalg.eigh(q)


def _contestants(*widths: int) -> Contestants:
    models = [_weights(d) for d in widths]
    return {
        "span": lambda: [_both(*weights) for weights in models],
        "dense": lambda: [_dense(*weights) for weights in models],
    }


@pytest.mark.parametrize("width", [4, 16, 32, 64])
@pytest.mark.parametrize("way", WAYS)
def test_one_width(benchmark: Any, way: str, width: int) -> None:
    benchmark.group = f"interaction matrices and eigenpairs, d = {width}, 64 remainders"
    enter(benchmark, way, _contestants, width, seconds=1.0)


@pytest.mark.parametrize("way", WAYS)
def test_all_widths(benchmark: Any, way: str) -> None:
    benchmark.group = "interaction matrices and eigenpairs, 64 widths × 64 remainders"
    enter(benchmark, way, _contestants, *range(64, 0, -1), seconds=1.0, least_rounds=3)
