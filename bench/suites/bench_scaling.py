"""How does it scale? The layer with M and d, a training step with the number of models and P.

A few points on each axis: forward and backward of the layer at d_in = 128, and training steps at
d = 16. Peers that compile are left out, because every point would need a compilation.
"""

from typing import Any

import pytest

from bench.measure import least_work
from bench.measure.turns import enter
from bench.suites.bench_layer import trainings as layer_trainings
from bench.suites.bench_step import skip_without_a_kernel, work_of_steps
from bench.suites.bench_step import trainings as step_trainings

LAYER_WAYS = ("fused", "eager")
STEP_WAYS = ("compiled", "vmap", "bmm")
D_IN, M, D = 128, 4096, 64
WIDTH, MODELS, P, STEPS = 16, 8, 64, 2


def _layer(benchmark: Any, axis: str, at: int, way: str, m: int, d: int) -> None:
    benchmark.group = f"scaling with {axis}: layer forward and backward, {axis} = {at}"
    benchmark.extra_info |= {"axis": axis, "at": at}
    least = least_work.forward_and_backward(m, D_IN, d, None)
    shape = (m, D_IN, d)
    enter(benchmark, way, layer_trainings, "layer", shape, LAYER_WAYS, work=least, seconds=0.5)


def _step(benchmark: Any, axis: str, at: int, way: str, p: int, models: int) -> None:
    skip_without_a_kernel(way)
    benchmark.group = f"scaling with {axis}: {STEPS} steps, {axis} = {at}"
    benchmark.extra_info |= {"axis": axis, "at": at}
    size = (p, WIDTH, models, STEPS)
    least = work_of_steps(*size)
    enter(benchmark, way, step_trainings, STEP_WAYS, *size, work=least, seconds=0.5)


@pytest.mark.parametrize("m", [64, 256, 1024, 4096, 16384, 65536])
@pytest.mark.parametrize("way", LAYER_WAYS)
def test_rows(benchmark: Any, way: str, m: int) -> None:
    _layer(benchmark, "M", m, way, m, D)


@pytest.mark.parametrize("d", [16, 64, 256, 1024])
@pytest.mark.parametrize("way", LAYER_WAYS)
def test_width(benchmark: Any, way: str, d: int) -> None:
    _layer(benchmark, "d", d, way, M, d)


@pytest.mark.parametrize("models", [1, 2, 8, 32])
@pytest.mark.parametrize("way", STEP_WAYS)
def test_models(benchmark: Any, way: str, models: int) -> None:
    _step(benchmark, "models", models, way, P, models)


@pytest.mark.parametrize("p", [16, 32, 64, 113])
@pytest.mark.parametrize("way", STEP_WAYS)
def test_modulus(benchmark: Any, way: str, p: int) -> None:
    _step(benchmark, "P", p, way, p, MODELS)
