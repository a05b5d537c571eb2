"""How fast is a training step? Ours, and plain PyTorch.

Full batch, three quarters of the pairs, float32, AdamW. One call of a contestant takes `STEPS`
steps with each of `MODELS` models of one width, on all cores.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from bench.measure import least_work
from bench.measure.ensembles import ensemble
from bench.measure.turns import Contestants, enter
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.record import Job
from bilinear.kernels import grid_cpu
from bilinear.kernels.grid_cpu import CpuGridModel
from bilinear.kernels.grid_torch import TorchGridModel
from bilinear.training.cpu import GridModel, make_model

P, MODELS, STEPS = 64, 8, 5
WAYS = ("compiled", "torch-ops", "vmap", "bmm")


def _jobs(d: int, models: int) -> list[Job]:
    return [Job(d, seed) for seed in range(models)]


def _lr(steps: int) -> torch.Tensor:
    return torch.full((steps,), 1e-2, dtype=torch.float64)


def _compiled(p: int, d: int, models: int, steps: int) -> Callable[[], object]:
    config = SweepConfig(p=p, remainders=())
    made = [make_model(CpuGridModel, config, job) for job in _jobs(d, models)]
    pool, lr = ThreadPoolExecutor(len(os.sched_getaffinity(0))), _lr(steps)

    def train(model: GridModel) -> None:
        model.steps(lr, lr)

    return lambda: list(pool.map(train, made))


def _torch_ops(p: int, d: int, models: int, steps: int) -> Callable[[], object]:
    config, lr = SweepConfig(p=p, remainders=()), _lr(steps)
    made = [make_model(TorchGridModel, config, job) for job in _jobs(d, models)]
    return lambda: [model.steps(lr, lr) for model in made]


def trainings(ways: tuple[str, ...], p: int, d: int, models: int, steps: int) -> Contestants:
    """Ways to take `steps` steps with each of `models` models of width d."""
    makers: dict[str, Callable[[], Callable[[], object]]] = {
        "compiled": lambda: _compiled(p, d, models, steps),
        "torch-ops": lambda: _torch_ops(p, d, models, steps),
        "vmap": lambda: ensemble("vmap", p, _jobs(d, models), steps),
        "bmm": lambda: ensemble("bmm", p, _jobs(d, models), steps),
    }
    if grid_cpu.unavailable_because():
        del makers["compiled"]
    return {way: make() for way, make in makers.items() if way in ways}


def work_of_steps(p: int, d: int, models: int, steps: int) -> least_work.Work:
    """Least work of one contestant's call."""
    return least_work.steps(SweepConfig(p=p, remainders=()), [d] * models, steps)


def skip_without_a_kernel(way: str) -> None:
    """Skip the compiled way, with the reason, if the C kernel was not compiled."""
    if way == "compiled" and grid_cpu.unavailable_because():
        pytest.skip(str(grid_cpu.unavailable_because()))


@pytest.mark.parametrize("d", [8, 16, 64])
@pytest.mark.parametrize("way", WAYS)
def test_step(benchmark: Any, way: str, d: int) -> None:
    skip_without_a_kernel(way)
    benchmark.group = f"{STEPS} steps of {MODELS} models, d={d}"
    size = (P, d, MODELS, STEPS)
    least = work_of_steps(*size)
    seconds = enter(benchmark, way, trainings, WAYS, *size, work=least, seconds=3.0)
    benchmark.extra_info["nominal GFLOP/s"] = STEPS * MODELS * 6 * P**3 * d / seconds[way] / 1e9
