"""The GPU's training backend, under Triton's interpreter or, where there is one, on a GPU."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from bilinear.errors import ResultsError
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.record import Finished, Job, Progress
from bilinear.experiment.schedule import Schedule
from bilinear.kernels.grid_torch import TorchGridModel
from bilinear.kernels.grid_triton import bytes_a_model, step_seconds
from bilinear.reading.interactions import interaction_matrices
from bilinear.results.checkpoint import Checkpoint
from bilinear.results.open import load_results
from bilinear.training import gpu
from bilinear.training.backend import Backend, Work, train
from bilinear.training.chains import Chains
from bilinear.training.choose import choose
from bilinear.training.cpu import CpuBackend
from bilinear.training.gpu import GpuBackend, _fitting, recipe_of
from bilinear.training.run import run_sweep

SMALL = SweepConfig(
    p=5, widths=(9, 17, 1), seeds=(0, 4), steps=24, eval_every=5, hold=2, remainders=(0, 3),
    lr=Schedule(0.05, 0.05), weight_decay=Schedule(0.1, 0.1),
)  # fmt: skip
HERE = [
    pytest.param(torch.device("cuda"), marks=pytest.mark.gpu),
    pytest.param(
        torch.device("cpu"),
        marks=pytest.mark.skipif(
            torch.cuda.is_available(), reason="kernels are compiled for the GPU in this run"
        ),
    ),
]


def trained(backend: Backend, config: SweepConfig) -> dict[Job, Finished]:
    events = list(train(backend, config))
    ended = [event for event in events if isinstance(event, Finished)]
    assert len(ended) == len({event.job for event in ended}) == len(config.jobs)
    assert all(isinstance(event, Progress | Finished) for event in events)
    return {event.job: event for event in ended}


@pytest.mark.parametrize("device", HERE)
def test_it_trains_what_the_cpu_trains(device: torch.device) -> None:
    ours = trained(GpuBackend(device, "test", memory=2**30), SMALL)
    theirs = trained(CpuBackend(TorchGridModel, 1, "torch-cpu", "test"), SMALL)
    for job, model in ours.items():
        a, b = model.record.evaluations, theirs[job].record.evaluations
        assert [e.step for e in a] == [e.step for e in b]
        for x, y in zip(a, b, strict=True):
            assert x.train_loss == pytest.approx(y.train_loss, rel=1e-4, abs=1e-7)
            assert x.val_loss == pytest.approx(y.val_loss, rel=1e-4, abs=1e-7)
        for name in ("w_l", "w_r", "w_p"):
            mine, other = getattr(model.weights, name), getattr(theirs[job].weights, name)
            assert mine.shape == other.shape
            assert (mine - other).norm() / other.norm() < 1e-3


@pytest.mark.parametrize("device", HERE)
def test_bits_do_not_depend_on_waves_or_company(device: torch.device) -> None:
    config = replace(SMALL, steps=7, widths=(3, 17))
    together = trained(GpuBackend(device, "test", memory=2**30), config)
    apart = trained(GpuBackend(device, "test", memory=1), config)
    for job, model in together.items():
        assert model.record.evaluations == apart[job].record.evaluations
        assert torch.equal(model.weights.w_l, apart[job].weights.w_l)
        assert torch.equal(model.weights.w_p, apart[job].weights.w_p)


@pytest.mark.parametrize("device", HERE)
def test_a_folder_of_its_results(device: torch.device, tmp_path: Path) -> None:
    config = replace(SMALL, steps=3, widths=(4, 2), seeds=(1,))
    run_sweep(config, GpuBackend(device, "test", memory=2**30), tmp_path / "run")
    results = load_results(tmp_path / "run")
    assert sorted(results.table.d_hidden) == [2, 4]
    for d in (2, 4):
        expected = interaction_matrices(results.models[d, 1], (0, 3))
        torch.testing.assert_close(results.interactions[d, 1], expected)


@pytest.mark.parametrize("device", HERE)
def test_a_stopped_run_goes_on_from_its_checkpoint(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SMALL, steps=20, widths=(3, 17), seeds=(0,))
    jobs = [Job(*job) for job in config.jobs]
    whole = trained(GpuBackend(device, "test", memory=2**30), config)
    monkeypatch.setattr(gpu, "_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(gpu, "_LAUNCH_SECONDS", 0.0)
    monkeypatch.setattr(gpu, "_STEPS_A_REPLAY", 1)
    scratch = tmp_path / "in-training"
    events = train(GpuBackend(device, "test", memory=2**30), config, jobs, scratch)
    for event in events:
        if isinstance(event, Progress) and event.evaluation.step >= 10:
            break
    events.close()  # type: ignore[attr-defined]
    kept = Checkpoint(scratch).read()
    assert set(kept) == set(jobs)
    assert all(5 <= state["counters"][0] < 20 for state in kept.values())
    again = list(train(GpuBackend(device, "test", memory=2**30), config, jobs, scratch))
    assert not scratch.exists()
    for event in again:
        if isinstance(event, Finished):
            assert event.record.evaluations == whole[event.job].record.evaluations
            assert torch.equal(event.weights.w_l, whole[event.job].weights.w_l)
            assert torch.equal(event.weights.w_p, whole[event.job].weights.w_p)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    Checkpoint(tmp_path).write("d016", [Job(3, 0)], {"weights": torch.zeros(1, 2)})
    assert Checkpoint(tmp_path).read()[Job(3, 0)]["weights"].tolist() == [0, 0]
    (tmp_path / "d016.safetensors").write_bytes(b"half")
    with pytest.raises(ResultsError, match=r"d016\.safetensors: damaged"):
        Checkpoint(tmp_path).read()


def test_a_wave_fits_its_room() -> None:
    config = replace(SMALL, widths=(1, 16, 17), seeds=tuple(range(5)))
    here = torch.device("cpu")
    sizes = {d: bytes_a_model(recipe_of(config), d, here) for d in config.widths}
    room = 4 * sizes[16]
    chains = Chains([Work(config, list(map(Job._make, config.jobs)))], lambda *_: [])
    take, waiting, waves = partial(chains.take, wait=False), [], []  # type: ignore[var-annotated]
    while wave := _fitting(take, waiting, room, here, at_least=True):
        waves.append([run.job for run in wave])
        assert sum(sizes[job.d_hidden] for job in waves[-1]) <= room
        assert len(waiting) <= 1
    jobs = [job for wave in waves for job in wave]
    assert jobs == sorted(map(Job._make, config.jobs))
    assert len(waves) > 1


def test_a_model_that_is_dropped_trains_no_further() -> None:
    config = replace(SMALL, widths=(3,), seeds=(0, 1, 2), steps=9, eval_every=1, hold=10)
    grid = gpu.make_grid(config, list(map(Job._make, config.jobs)), torch.device("cpu"))
    steps = gpu._Steps(grid, 1.0)
    steps.take(2)
    grid.stop([1])
    steps.take(3)
    assert grid.counters[:, 0].tolist() == [5, 2, 5]
    assert grid.counters[:, 2].tolist() == [0, 1, 0]


def test_a_first_launch_follows_the_cost_of_a_step() -> None:
    here = torch.device("cpu")

    def seconds(p: int, d: int, models: int) -> float:
        config = replace(SMALL, p=p, widths=(d,), remainders=())
        return step_seconds(recipe_of(config), d, models, here, 132)

    assert 2e-5 < seconds(64, 16, 16) < 1e-4
    assert 5e-5 < seconds(64, 64, 32) < 3e-4
    assert seconds(64, 16, 6400) > 50 * seconds(64, 16, 16)
    assert seconds(256, 256, 1) > 0.25, (
        "a launch of twenty steps would show no progress for too long"
    )


@pytest.mark.gpu
@pytest.mark.parametrize(("p", "d"), [(64, 16), (64, 64), (97, 24), (131, 16)])
@pytest.mark.parametrize(("precision", "rtol"), [("highest", 1e-4), ("high", 2e-3), ("tf32", 5e-2)])
def test_two_hundred_steps_on_a_gpu(p: int, d: int, precision: str, rtol: float) -> None:
    config = SweepConfig(
        p=p, widths=(d,), steps=200, eval_every=10, hold=10**6, remainders=(), precision=precision
    )
    on_cpu = choose(replace(config, precision="highest"), fused=True, device="cpu")
    ours = trained(choose(config, fused=True, device="cuda"), config)[Job(d, 0)]
    theirs = trained(on_cpu, config)[Job(d, 0)]
    for x, y in zip(ours.record.evaluations, theirs.record.evaluations, strict=True):
        assert x.train_loss == pytest.approx(y.train_loss, rel=rtol)
