"""How fast is the whole sweep? As the user runs it, and in plain PyTorch.

P = 64, widths 64, 32, 16 and 8, one seed each, three quarters of the pairs, no early stops.
Compares the time of an epoch, in which each of the four models sees its 3,072 training pairs once.

full batch (an epoch is a step)
    fused       `run_sweep` on the backend that `sweep.py --fused` would choose, into a new folder:
                set-up, evaluation of all pairs every ten steps, interaction matrices, and files
                flushed to disk; the time of the whole call divided by its epochs
    vmap, bmm   ensembles (bench/measure/ensembles.py) of the four models padded to width 64;
                training steps only, without evaluations or files
    notebook    `train_notebook`, one width after another: 48 minibatches of 64 an epoch, so 48
                times as many updates from the same data, and its evaluation of the validation
                pairs; on one thread, which is faster for it (the others use all cores)
minibatches of 64 (an epoch is 48 steps)
    fused       `run_sweep` with the notebook's protocol and number of updates
    notebook    as above

A third contest trains one seed of every width: P = 32, widths 32 to 2, a whole `run_sweep`.
    fused        narrowed: each width from the next wider one's weights
    independent  each width from initial weights; many widths use all their steps
(bench/studies/chain_time.py times the whole commands at P = 64.)
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.measure import least_work
from bench.measure.ensembles import ensemble
from bench.measure.turns import Contestants, enter
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.narrowing import Narrowing
from bilinear.experiment.record import Job
from bilinear.reference import ModelConfig
from bilinear.training.choose import choose
from bilinear.training.notebook_loop import train_notebook
from bilinear.training.run import run_sweep

P, WIDTHS = 64, (64, 32, 16, 8)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WHERE = " on a GPU" if DEVICE == "cuda" else ""
NEVER = 10**6  # evaluations in a row that would have to be perfect before a model stops
FULL_BATCH = SweepConfig(p=P, widths=WIDTHS, hold=NEVER)
MINIBATCHES = replace(FULL_BATCH, batch_size=64)
# Epochs of one call, so that a call takes some tenths of a second; one epoch's time is reported.
EPOCHS = {"fused": 400, "vmap": 20, "bmm": 20, "notebook": 2}
EPOCHS_BY_MINIBATCHES = {"fused": 40, "notebook": 2}
EVERY_WIDTH = SweepConfig(p=32, widths=tuple(range(32, 1, -1)), remainders=())


def _fused(config: SweepConfig, epochs: int) -> Callable[[], object]:
    steps = epochs * config.steps_per_epoch
    # The notebook evaluates once an epoch; the full-batch recipe every ten steps.
    every = config.steps_per_epoch if config.batch_size else config.eval_every
    return _whole(replace(config, steps=steps, eval_every=every))


def _whole(config: SweepConfig) -> Callable[[], object]:
    backend = choose(config, fused=True)

    def sweep() -> None:
        with tempfile.TemporaryDirectory() as folder:
            run_sweep(config, backend, Path(folder) / "run")

    return sweep


def _notebook(epochs: int) -> Callable[[], object]:
    def loop() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for d in WIDTHS:
                train_notebook(ModelConfig(P, d), epochs=epochs, device=DEVICE)
        finally:
            torch.set_num_threads(threads)

    return loop


def full_batch_sweeps() -> Contestants:
    """Ways to train for `EPOCHS` epochs by full batches."""
    jobs = [Job(d, 0) for d in WIDTHS]
    return {
        "fused": _fused(FULL_BATCH, EPOCHS["fused"]),
        "vmap": ensemble("vmap", P, jobs, EPOCHS["vmap"], DEVICE),
        "bmm": ensemble("bmm", P, jobs, EPOCHS["bmm"], DEVICE),
        "notebook": _notebook(EPOCHS["notebook"]),
    }


def minibatch_sweeps() -> Contestants:
    """Ways to train for `EPOCHS_BY_MINIBATCHES` epochs by minibatches."""
    return {
        "fused": _fused(MINIBATCHES, EPOCHS_BY_MINIBATCHES["fused"]),
        "notebook": _notebook(EPOCHS_BY_MINIBATCHES["notebook"]),
    }


def every_width() -> Contestants:
    """Ways to train a model of every width."""
    narrowed = replace(EVERY_WIDTH, narrow=Narrowing())
    return {"fused": _whole(narrowed), "independent": _whole(EVERY_WIDTH)}


@pytest.mark.parametrize("way", ["fused", "independent"])
def test_every_width(benchmark: Any, way: str) -> None:
    benchmark.group = f"a model of every width from 32 to 2, narrowed{WHERE}"
    enter(benchmark, way, every_width, device=DEVICE, seconds=20.0, least_rounds=3)


@pytest.mark.parametrize("way", EPOCHS)
def test_full_batch(benchmark: Any, way: str) -> None:
    benchmark.group = f"an epoch of a sweep of widths 64, 32, 16, 8{WHERE}"
    least = least_work.steps(FULL_BATCH, WIDTHS) + least_work.evaluations(
        FULL_BATCH, WIDTHS, 1 / 10
    )
    enter(benchmark, way, full_batch_sweeps, work=least, times=EPOCHS, device=DEVICE, seconds=8.0)


@pytest.mark.parametrize("way", EPOCHS_BY_MINIBATCHES)
def test_minibatches(benchmark: Any, way: str) -> None:
    benchmark.group = f"an epoch by minibatches of 64, widths 64, 32, 16, 8{WHERE}"
    n = MINIBATCHES.steps_per_epoch
    least = least_work.steps(MINIBATCHES, WIDTHS, n) + least_work.evaluations(
        MINIBATCHES, WIDTHS, 1
    )
    how = {"work": least, "times": EPOCHS_BY_MINIBATCHES, "device": DEVICE, "seconds": 5.0}
    enter(benchmark, way, minibatch_sweeps, **how)
