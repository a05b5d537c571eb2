"""Runs the suites' tests without timing: every contestant exists and its work is consistent."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from bench.measure.least_work import Work
from bench.suites import bench_layer, bench_scaling, bench_step, bench_sweep
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.narrowing import Narrowing


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Work]]:
    """Contestants and the least work of their task, as a suite passes them to `enter`."""
    found: list[tuple[str, Work]] = []
    none = Work(0, 0)

    def enter(_: Any, way: str, make: Any, *_more: Any, work: Work = none, **__: Any) -> dict:
        assert callable(make)
        found.append((way, work))
        return {way: 1.0}

    for suite in (bench_layer, bench_scaling, bench_step, bench_sweep):
        monkeypatch.setattr(suite, "enter", enter)
    return found


def benchmark() -> Any:
    return SimpleNamespace(extra_info={})


def test_of_a_step(asked: list[tuple[str, Work]]) -> None:
    for d in (8, 16):
        bench_step.test_step(benchmark(), "torch-ops", d)
    (_, narrow), (_, wide) = asked
    assert wide.flop == pytest.approx(2 * narrow.flop)


def test_of_the_layer(asked: list[tuple[str, Work]]) -> None:
    shape = bench_layer.SHAPES[0]
    for op in ("layer", "mlp"):
        bench_layer.test_forward(benchmark(), "eager", op, shape)
        bench_layer.test_forward_and_backward(benchmark(), "fused", op, shape)
    works = [work.flop for _, work in asked]
    assert works[1] > 2 * works[0] > 0
    assert works[2] > works[0]
    assert works[3] > works[1]


def test_of_scaling(asked: list[tuple[str, Work]]) -> None:
    bench_scaling.test_rows(benchmark(), "eager", 64)
    bench_scaling.test_width(benchmark(), "eager", 16)
    bench_scaling.test_models(benchmark(), "torch-ops", 2)
    bench_scaling.test_modulus(benchmark(), "torch-ops", 16)
    assert all(work.flop > 0 for _, work in asked)
    assert len(asked) == 4


def test_of_a_sweep(asked: list[tuple[str, Work]]) -> None:
    bench_sweep.test_full_batch(benchmark(), "fused")
    bench_sweep.test_minibatches(benchmark(), "fused")
    (_, full), (_, minibatches) = asked
    assert minibatches.flop > full.flop > 0


def test_of_every_width(asked: list[tuple[str, Work]], monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(bench_sweep.EVERY_WIDTH, p=5, widths=(4, 3), steps=20, hold=2)
    swept: list[SweepConfig] = []
    monkeypatch.setattr(bench_sweep, "EVERY_WIDTH", few)
    monkeypatch.setattr(bench_sweep, "run_sweep", lambda config, *_: swept.append(config))
    for way in bench_sweep.every_width().values():
        way()
    assert swept == [replace(few, narrow=Narrowing()), few]
    bench_sweep.test_every_width(benchmark(), "independent")
    assert [way for way, _ in asked] == ["independent"]
