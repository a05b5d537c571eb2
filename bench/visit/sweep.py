"""The sweep on a GPU: training, the command, a step against PyTorch ensembles, the frontier."""

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench.measure.clock import call_seconds, event_seconds
from bench.measure.ensembles import KINDS, captured, ensemble
from bench.measure.turns import take_turns
from bench.visit.commands import run as run_command
from bench.visit.items import Item, Visit
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.narrowing import Narrowing
from bilinear.experiment.record import Finished, Job
from bilinear.experiment.task import split_pairs
from bilinear.kernels.grid_triton import TILE, chunks_of, padded, step_seconds
from bilinear.kernels.tiles import blocks
from bilinear.reference import ModelConfig
from bilinear.results.frontier import frontier as frontier_of
from bilinear.training.backend import train
from bilinear.training.gpu import GpuBackend, _Stopwatch, make_grid, recipe_of
from bilinear.training.notebook_loop import train_notebook
from bilinear.training.run import run_sweep

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
ENDLESS = 10**6
# Numbers of hidden units that a program computes at a time, measured beside the default. Fewer
# units spill fewer registers, but take more passes over the pairs.
UNITS = (16, 32)
STEPS = 50 if ON_GPU else 1  # of training, in one timed call


def in_turns(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Time the ways in turns; returns median and spread in seconds of each."""
    once = event_seconds if ON_GPU else call_seconds
    samples = take_turns(ways, 0.0, rounds, once, most_rounds=rounds)
    return {
        name: {"median": median(s), "least": min(s), "most": max(s), "rounds": rounds}
        for name, s in samples.items()
    }


def _config(p: int, jobs: Sequence[Job], **changes: Any) -> SweepConfig:
    """Return a config in which no model stops early, so that every step is timed."""
    settings = {
        "p": p,
        "widths": tuple(sorted({job.d_hidden for job in jobs})),
        "seeds": tuple(sorted({job.seed for job in jobs})),
        "steps": 100_000,
        "eval_every": 10,
        "hold": ENDLESS,
        "remainders": (),
    }
    return SweepConfig(**settings | changes)


def _grids(config: SweepConfig, jobs: Sequence[Job], chunks: int = 1, units: int = 0) -> list[Any]:
    """Return a grid per padded width; it computes `units` units at a time (0: the default)."""
    groups: dict[int, list[Job]] = {}
    for job in jobs:
        width = padded(recipe_of(config), job.d_hidden, DEVICE)
        groups.setdefault(blocks(job.d_hidden, units) if units else width, []).append(job)
    tile = replace(TILE, block_d=units) if units else None
    return [make_grid(config, group, DEVICE, chunks, tile) for group in groups.values()]


def _models(grid: Any) -> Tensor:
    return torch.arange(len(grid.widths), dtype=torch.int32, device=DEVICE)


def _side_by_side(each: Sequence[Callable[[], object]]) -> None:
    """Run each function on a CUDA stream of its own, and wait for all."""
    if not ON_GPU:
        for run in each:
            run()
        return
    here = torch.cuda.current_stream()
    for run in each:
        stream = torch.cuda.Stream()
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            run()
        here.wait_stream(stream)


def _runs(p: int, jobs: Sequence[Job], precision: str) -> Callable[[], object]:
    """Train with one program per model: one launch per padded width runs `STEPS` steps."""
    grids = _grids(_config(p, jobs, precision=precision), jobs)
    return partial(_side_by_side, [partial(grid.run, _models(grid), STEPS) for grid in grids])


def _launches(
    p: int, jobs: Sequence[Job], precision: str, chunks: int, units: int = 0
) -> Callable[[], object]:
    """Train with two launches per step and padded width; a CUDA graph holds `STEPS` steps."""
    grids = _grids(_config(p, jobs, precision=precision), jobs, chunks, units)

    def train_grid(grid: Any, models: Tensor) -> None:
        for _ in range(STEPS):
            grid.step(models)

    each = [partial(train_grid, grid, _models(grid)) for grid in grids]
    steps = partial(_side_by_side, each)
    return captured(steps) if ON_GPU else steps


def _notebook_seconds_a_step(p: int, d: int, epochs: int) -> float:
    """Time the notebook's loop: DataLoader, batches of at most 64, autograd, AdamW.

    A run of one epoch is subtracted, so that set-up is not counted.
    """
    seconds: list[float] = []
    for n in (1, 1 + epochs):
        start = time.perf_counter()
        train_notebook(
            ModelConfig(p, d), seed=0, train_frac=0.75, batch_size=min(64, p), epochs=n,
            lr=3e-3, weight_decay=3e-4, device=str(DEVICE),
        )  # fmt: skip
        seconds.append(time.perf_counter() - start)
    steps = epochs * (split_pairs(p, 0.75, 0).n_train // min(64, p))
    return (seconds[1] - seconds[0]) / steps


def _ways(
    p: int, jobs: Sequence[Job], chunks: Sequence[int]
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Set up every way to train; returns those that work, and the errors of the others."""
    makers: dict[str, Callable[[], Callable[[], object]]] = {}
    for precision in ("highest", "high", "tf32"):
        makers[f"run, {precision}"] = partial(_runs, p, jobs, precision)
        for n in chunks:
            key = f"launch a step, {precision}, {n} chunks"
            makers[key] = partial(_launches, p, jobs, precision, n)
        for units in UNITS:
            key = f"launch a step, {precision}, {chunks[-1]} chunks, {units} units"
            makers[key] = partial(_launches, p, jobs, precision, chunks[-1], units)
    for kind in KINDS:
        makers[f"{kind} ensemble, graph"] = partial(ensemble, kind, p, jobs, STEPS, DEVICE)
    ways, failed = {}, {}
    for name, make in makers.items():
        try:
            ways[name] = make()
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
            print(f"{name}: {failed[name]}", flush=True)
    return ways, failed


def items(visit: Visit) -> list[Item]:
    """Return items that time training and the command, then a step of several implementations."""
    found = [
        Item(f"training, {name}", partial(_training, config), least=20, most=120)
        for name, config in _configs(visit).items()
    ]
    found.insert(2, Item("command", _command, least=30, most=120))
    found.insert(3, Item("training, one narrowed chain", _narrowed, least=20, most=90))
    found += [
        Item(f"a step, {name}", partial(_steps, name, p, jobs), least=40, most=180)
        for name, (p, jobs) in _cases(visit).items()
    ]
    return [*found, Item("a step, the notebook's loop", _notebook, least=20, most=60)]


def frontier_items(visit: Visit) -> list[Item]:
    """Return an item for each modulus: the share of perfect seeds by width."""
    moduli = (5,) if visit.quick else (64, 59, 97, 113)
    return [Item(f"p={p}", partial(_frontier, p), least=30, most=180) for p in moduli]


def _configs(visit: Visit) -> dict[str, SweepConfig]:
    if visit.quick:
        small = SweepConfig(p=5, widths=(2, 1), steps=20, remainders=(0,))
        return {"one seed": small, "two seeds": replace_seeds(small, 2)}
    found = {"one seed": SweepConfig(), "64 seeds": replace_seeds(SweepConfig(), 64)}
    for precision in ("high", "tf32"):
        found[f"one seed, {precision}"] = SweepConfig(precision=precision)
    return found


def replace_seeds(config: SweepConfig, seeds: int) -> SweepConfig:
    """Change the number of seeds of a config; no interaction matrices are kept."""
    return replace(config, seeds=tuple(range(seeds)), remainders=())


def _cases(visit: Visit) -> dict[str, tuple[int, list[Job]]]:
    if visit.quick:
        return {"widths 1..3, one seed": (3, [Job(d, 0) for d in range(1, 4)])}
    return {
        "widths 1..64, one seed": (64, [Job(d, 0) for d in range(1, 65)]),
        "width 16, 64 seeds": (64, [Job(16, seed) for seed in range(64)]),
        "width 64, 64 seeds": (64, [Job(64, seed) for seed in range(64)]),
        "widths 1..64, 8 seeds": (64, [Job(d, s) for d in range(1, 65) for s in range(8)]),
    }


def _steps(name: str, p: int, jobs: list[Job], visit: Visit) -> dict[str, Any]:
    """Time a step of all models together: by ours, one launch or many, and by ensembles."""
    ways, failed = _ways(p, jobs, (2,) if visit.quick else (1, 4))
    times = in_turns(ways, 1 if visit.quick else 10)
    for way, seconds in times.items():
        micro = seconds["median"] / STEPS * 1e6
        print(f"{name}: {way:<36} {micro:10.1f} µs a step", flush=True)
    # As the grid counts: 6 p³ d per step and model.
    flop = sum(6 * p**3 * job.d_hidden for job in jobs)
    return {
        "models": len(jobs), "steps a sample": STEPS, "flop a step": flop,
        "times": times, "ways that failed": failed, **_against_model(p, jobs, times),
    }  # fmt: skip


def _against_model(
    p: int, jobs: Sequence[Job], times: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Compare the modelled and the measured seconds of one step of all models."""
    recipe = recipe_of(_config(p, jobs))
    way = f"launch a step, highest, {chunks_of(recipe)} chunks"
    if way not in times:
        return {}
    at_once = GpuBackend(DEVICE, "benchmark").at_once
    widths = Counter(padded(recipe, job.d_hidden, DEVICE) for job in jobs)
    modelled = sum(step_seconds(recipe, d, n, DEVICE, at_once) for d, n in widths.items())
    measured = times[way]["median"] / STEPS
    summary = f"a step modelled {modelled * 1e6:.0f} µs, measured {measured * 1e6:.0f}"
    return {"modelled": modelled, "measured": measured, "told": summary}


def _narrowed(visit: Visit) -> dict[str, Any]:
    """Train one narrowed chain; measures how long the device is idle while units are dropped.

    One lane trains at a time, so launches do not overlap, and their times add up to the device's.
    """
    if visit.quick:
        narrow = Narrowing(tries=2, redraws=1)
        config = SweepConfig(p=5, widths=(4, 3), steps=6, remainders=(), narrow=narrow)
    else:
        config = SweepConfig(widths=tuple(range(16, 3, -1)), remainders=(), narrow=Narrowing())
    launches: list[float] = []
    measured = _Stopwatch.seconds

    def seconds(watch: _Stopwatch) -> float:
        launches.append(measured(watch))
        return launches[-1]

    spent, ended = _timed(config, mock.patch.object(_Stopwatch, "seconds", seconds))
    idle = 1 - sum(launches) / spent
    return {
        "training seconds": spent, "models": len(ended), "idle share": idle,
        "told": f"{spent:.2f} s, {len(ended)} widths, device idle {idle:.0%} of it",
    }  # fmt: skip


def _notebook(visit: Visit) -> dict[str, Any]:
    p, epochs = (3, 1) if visit.quick else (64, 3)
    widths = sorted({min(16, p), p})
    return {"p": p, "seconds a step": {d: _notebook_seconds_a_step(p, d, epochs) for d in widths}}


def _backend() -> GpuBackend:
    return GpuBackend(DEVICE, "benchmark", None if ON_GPU else 2**30)


def _timed(
    config: SweepConfig, meanwhile: AbstractContextManager | None = None
) -> tuple[float, list[Finished]]:
    """Compile the kernels, then train a config; returns seconds of training and the models."""
    backend = _backend()
    list(train(backend, replace(config, steps=2)))
    with meanwhile or nullcontext():
        start = time.perf_counter()
        ended = [event for event in train(backend, config) if isinstance(event, Finished)]
        return time.perf_counter() - start, ended


def _training(config: SweepConfig, visit: Visit) -> dict[str, Any]:
    seconds, ended = _timed(config)
    rows = [event.record.row(event.job) for event in ended]
    taken = sum(row["steps"] for row in rows)
    return {
        "training seconds": seconds, "models": len(rows), "steps of all models": taken,
        "perfect": sum(row["perfect"] for row in rows),
        "told": f"{seconds:.2f} s of training, {taken:,} steps",
    }  # fmt: skip


def _command(visit: Visit) -> dict[str, Any]:
    """Time `python sweep.py --fused`, from the command to the finished folder."""
    line = [sys.executable, "sweep.py", "--fused"]
    if visit.quick:
        line += ["--p", "5", "--widths", "2", "--steps", "20"]
    found = []
    for i in range(1 if visit.quick else 3):
        with tempfile.TemporaryDirectory() as folder:
            log = visit.logs / f"command-{i}.log"
            done = run_command([*line, "--out", f"{folder}/run"], visit.at_most(120), log)
        if done.exit != 0:
            raise RuntimeError(f"{line}: exit {done.exit}: {done.output[-1000:]}")
        found.append(done.seconds)
    return {"command, seconds": found, "told": f"{median(found):.2f} s"}


def _frontier(p: int, visit: Visit) -> dict[str, Any]:
    widths = (2, 1) if visit.quick else tuple(range(min(p, 24), 3, -1))
    config = SweepConfig(
        p=p, widths=widths, seeds=tuple(range(1 if visit.quick else 64)),
        steps=20 if visit.quick else 6000, remainders=(),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        results = run_sweep(config, _backend(), Path(folder) / "run")
        seconds = time.perf_counter() - start
        found = frontier_of(results.table)
    summary = f"smallest perfect {found['smallest_perfect_width']}, {seconds:.0f} s"
    return {"seconds": seconds, "recipe": config.to_json(), "told": summary, **found}
