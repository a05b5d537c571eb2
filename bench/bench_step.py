"""How fast is a training step? Ours, and what one would write with PyTorch.

Full batch, P = 64, three quarters of the pairs, float32, AdamW. Every contestant takes five steps
with each of eight models of one width, on all cores.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contest import Contestants, enter
from bilinear.backends.cpu import GridModel, make_model
from bilinear.config import SweepConfig
from bilinear.data import split_pairs
from bilinear.kernels import grid_cpu
from bilinear.kernels.grid_cpu import CpuGridModel
from bilinear.kernels.grid_torch import TorchGridModel
from bilinear.training import Job

P, MODELS, STEPS = 64, 8, 5
CONFIG = SweepConfig(p=P, remainders=())
LR = torch.full((STEPS,), 1e-2, dtype=torch.float64)


def _data() -> tuple[Tensor, Tensor, Tensor]:
    split = split_pairs(P, CONFIG.train_frac, 0)
    a, b = split.pairs[: split.n_train].long().T
    return a, b, (a + b) % P


def _compiled(d: int) -> Callable[[], object]:
    models = [make_model(CpuGridModel, CONFIG, Job(d, seed)) for seed in range(MODELS)]
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    def steps(model: GridModel) -> None:
        model.steps(LR, LR)

    return lambda: list(pool.map(steps, models))


def _torch_ops(d: int) -> Callable[[], object]:
    models = [make_model(TorchGridModel, CONFIG, Job(d, seed)) for seed in range(MODELS)]
    return lambda: [model.steps(LR, LR) for model in models]


def _stacked(d: int) -> list[Tensor]:
    models = [make_model(TorchGridModel, CONFIG, Job(d, seed)) for seed in range(MODELS)]
    return [
        torch.stack(ws).requires_grad_() for ws in zip(*(m.weights() for m in models), strict=True)
    ]


def _loss(w_l: Tensor, w_r: Tensor, w_p: Tensor, a: Tensor, b: Tensor, label: Tensor) -> Tensor:
    """One model's loss, by columns of the weights instead of a matmul with one-hot rows."""
    left = w_l.T[a] + w_l.T[P + b]
    right = w_r.T[a] + w_r.T[P + b]
    return F.cross_entropy((left * right) @ w_p.T, label)


def _vmap(d: int) -> Callable[[], object]:
    weights, data = _stacked(d), _data()
    optimizer = torch.optim.AdamW(weights, lr=1e-2, weight_decay=1e-2)
    gradient = torch.func.vmap(
        torch.func.grad(_loss, argnums=(0, 1, 2)), in_dims=(0, 0, 0, None, None, None)
    )

    def step() -> None:
        for w, g in zip(weights, gradient(*(w.detach() for w in weights), *data), strict=True):
            w.grad = g
        optimizer.step()

    return lambda: [step() for _ in range(STEPS)]


def _bmm(d: int) -> Callable[[], object]:
    weights, (a, b, label) = _stacked(d), _data()
    optimizer = torch.optim.AdamW(weights, lr=1e-2, weight_decay=1e-2)
    x = torch.cat([F.one_hot(a, P), F.one_hot(b, P)], 1).float()

    def step() -> None:
        w_l, w_r, w_p = weights
        h = torch.matmul(x, w_l.mT) * torch.matmul(x, w_r.mT)
        logits = torch.bmm(h, w_p.mT)
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), label.repeat(MODELS), reduction="sum").backward()
        optimizer.step()

    return lambda: [step() for _ in range(STEPS)]


WAYS = {"compiled": _compiled, "torch-ops": _torch_ops, "vmap": _vmap, "bmm": _bmm}


def contestants(d: int) -> Contestants:
    ways = dict(WAYS)
    if grid_cpu.unavailable_because():
        del ways["compiled"]
    return {name: make(d) for name, make in ways.items()}


@pytest.mark.parametrize("d", [8, 16, 64])
@pytest.mark.parametrize("way", WAYS)
def test_step(benchmark: Any, way: str, d: int) -> None:
    if way == "compiled" and grid_cpu.unavailable_because():
        pytest.skip(str(grid_cpu.unavailable_because()))
    benchmark.group = f"{STEPS} steps of {MODELS} models, d={d}"
    seconds = enter(benchmark, way, contestants, d)[way]
    benchmark.extra_info["nominal GFLOP/s"] = STEPS * MODELS * 6 * P**3 * d / seconds / 1e9
