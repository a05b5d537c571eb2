"""How fast are eigenpairs of interaction matrices? Through the weights' span, and the dense way.

P = 64 (d_in = 128), float32, every remainder of every width, on all cores. The dense way builds
each matrix by one einsum and hands it to `torch.linalg.eigh`.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.contest import Contestants, enter
from bilinear.interactions import interaction_matrices
from bilinear.spectra import eigenpairs

P = 64
EVERY_FOURTH = tuple(range(4, 65, 4))


def _models(widths: tuple[int, ...]) -> list[tuple[Tensor, Tensor, Tensor]]:
    source = torch.Generator().manual_seed(0)
    return [
        tuple(torch.randn(*shape, generator=source) for shape in ((d, 2 * P), (d, 2 * P), (P, d)))
        for d in widths
    ]


def _contestants(*widths: int) -> Contestants:
    models = _models(widths)
    return {
        "span": lambda: [eigenpairs(*weights) for weights in models],
        "dense": lambda: [torch.linalg.eigh(interaction_matrices(*weights)) for weights in models],
    }


@pytest.mark.parametrize("width", [4, 16, 32, 64])
@pytest.mark.parametrize("name", ["span", "dense"])
def test_one_width(benchmark: Any, name: str, width: int) -> None:
    benchmark.group = f"eigenpairs, d = {width}, 64 remainders"
    enter(benchmark, name, _contestants, width, seconds=1.0)


@pytest.mark.parametrize("name", ["span", "dense"])
def test_every_fourth_width(benchmark: Any, name: str) -> None:
    benchmark.group = "eigenpairs, 16 widths × 64 remainders"
    enter(benchmark, name, _contestants, *EVERY_FOURTH, seconds=1.0)


def test_all_widths(benchmark: Any) -> None:
    benchmark.group = "eigenpairs, 64 widths × 64 remainders"
    run = _contestants(*range(64, 0, -1))["span"]
    benchmark.pedantic(run, rounds=1, warmup_rounds=0)
