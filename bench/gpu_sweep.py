"""The sweep on a GPU: a step against ensembles in PyTorch, the whole command, and the frontier.

    python -m bench.gpu_sweep steps|command|frontier FILE [--quick]

Writes what it finds to FILE as JSON. `python -m bench.gpu` runs each part in a process of its own;
`--quick` runs the same code on tiny models, without a GPU by Triton's interpreter, to see that it
works; its figures mean nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

ON_GPU = torch.cuda.is_available()
if not ON_GPU:  # before anything imports a kernel
    os.environ["TRITON_INTERPRET"] = "1"

from bench.measure.clock import call_seconds, event_seconds  # noqa: E402
from bench.measure.ensembles import KINDS, captured, ensemble  # noqa: E402
from bilinear.experiment.config import SweepConfig  # noqa: E402
from bilinear.experiment.record import Job  # noqa: E402
from bilinear.experiment.task import split_pairs  # noqa: E402
from bilinear.kernels.grid_triton import TILE  # noqa: E402
from bilinear.kernels.tiles import Tile  # noqa: E402
from bilinear.reference import ModelConfig  # noqa: E402
from bilinear.results.frontier import frontier as frontier_of  # noqa: E402
from bilinear.training.backend import train  # noqa: E402
from bilinear.training.gpu import GpuBackend, make_grid, padded  # noqa: E402
from bilinear.training.notebook_loop import train_notebook  # noqa: E402
from bilinear.training.run import run_sweep  # noqa: E402

ROOT = Path(__file__).parent.parent
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
ENDLESS = 10**6
# Beside the default: fewer passes over the pairs for wide models, with more registers spilled.
TILES = [replace(TILE, block_d=32), replace(TILE, block_d=64, num_warps=8)]
STEPS = 50 if ON_GPU else 1  # in one sample


def in_turns(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Median and spread in seconds of each way, round by round in turns, after one warm-up."""
    once = event_seconds if ON_GPU else call_seconds
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds + 1):
        for name, run in ways.items():
            seconds = once(run)
            if i > 0:
                samples[name].append(seconds)
    return {
        name: {"median": median(s), "least": min(s), "most": max(s), "rounds": rounds}
        for name, s in samples.items()
    }


def _config(p: int, jobs: Sequence[Job], **changes: Any) -> SweepConfig:
    """A recipe no model ever stops in."""
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


def _grids(
    config: SweepConfig, jobs: Sequence[Job], chunks: int = 1, tile: Tile = TILE
) -> list[Any]:
    widths = sorted({padded(job.d_hidden, tile) for job in jobs})
    groups = [[job for job in jobs if padded(job.d_hidden, tile) == d] for d in widths]
    return [make_grid(config, group, DEVICE, chunks, tile) for group in groups]


def _models(grid: Any) -> Tensor:
    return torch.arange(len(grid.widths), dtype=torch.int32, device=DEVICE)


def _side_by_side(each: Sequence[Callable[[], object]]) -> None:
    """Run on streams of their own, joined at the end."""
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


def _runs(p: int, jobs: Sequence[Job], precision: str, tile: Tile = TILE) -> Callable[[], object]:
    """(a) one program a model, `STEPS` steps in one launch for each padded width."""
    grids = _grids(_config(p, jobs, precision=precision), jobs, tile=tile)
    pairs = [(grid, _models(grid)) for grid in grids]
    return lambda: _side_by_side([lambda g=g, m=m: g.run(m, STEPS) for g, m in pairs])  # type: ignore[misc]


def _launches(p: int, jobs: Sequence[Job], precision: str, chunks: int) -> Callable[[], object]:
    """(b) two launches a step for each padded width, `STEPS` steps in a CUDA graph."""
    grids = _grids(_config(p, jobs, precision=precision), jobs, chunks)
    pairs = [(grid, _models(grid)) for grid in grids]

    def steps() -> None:
        def one(grid: Any, models: Tensor) -> None:
            for _ in range(STEPS):
                grid.step(models)

        _side_by_side([lambda g=g, m=m: one(g, m) for g, m in pairs])  # type: ignore[misc]

    return captured(steps) if ON_GPU else steps


def _notebook_seconds_a_step(p: int, d: int, epochs: int) -> float:
    """Of the notebook's own loop: DataLoader, batch 64, autograd, AdamW."""
    result_of: list[float] = []
    for n in (1, 1 + epochs):
        start = time.perf_counter()
        train_notebook(
            ModelConfig(p, d), seed=0, train_frac=0.75, batch_size=min(64, p), epochs=n,
            lr=3e-3, weight_decay=3e-4, device=str(DEVICE),
        )  # fmt: skip
        result_of.append(time.perf_counter() - start)
    steps = epochs * (split_pairs(p, 0.75, 0).n_train // min(64, p))
    return (result_of[1] - result_of[0]) / steps


def _flop(p: int, jobs: Sequence[Job]) -> int:
    """Of a step by the grid's count, 6 p³ d a model."""
    return sum(6 * p**3 * job.d_hidden for job in jobs)


def _ways(
    p: int, jobs: Sequence[Job], chunks: Sequence[int]
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Whatever can be set up here, and why the rest could not: one failure leaves the others be."""
    makers: dict[str, Callable[[], Callable[[], object]]] = {}
    for precision in ("highest", "high", "tf32"):
        makers[f"run, {precision}"] = lambda x=precision: _runs(p, jobs, x)  # type: ignore[misc]
        for n in chunks:
            key = f"launch a step, {precision}, {n} chunks"
            makers[key] = lambda x=precision, n=n: _launches(p, jobs, x, n)  # type: ignore[misc]
        for tile in TILES:
            key = f"run, {precision}, {tile.block_d} units, {tile.num_warps} warps"
            makers[key] = lambda x=precision, t=tile: _runs(p, jobs, x, t)  # type: ignore[misc]
    for kind in KINDS:
        makers[f"{kind} ensemble, graph"] = lambda k=kind: ensemble(k, p, jobs, STEPS, DEVICE)  # type: ignore[misc]
    ways, failed = {}, {}
    for name, make in makers.items():
        try:
            ways[name] = make()
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
            print(f"{name}: {failed[name]}", flush=True)
    return ways, failed


def steps(quick: bool) -> dict[str, Any]:
    """A step of all models together: ours in both shapes of the loop, ensembles, the notebook."""
    p = 3 if quick else 64
    cases = {
        f"widths 1..{p}, one seed": [Job(d, 0) for d in range(1, p + 1)],
        f"width {min(16, p)}, {p} seeds": [Job(min(16, p), seed) for seed in range(p)],
        f"widths 1..{p}, 8 seeds": [Job(d, s) for d in range(1, p + 1) for s in range(8)],
    }
    if quick:
        cases = dict(list(cases.items())[:1])
    found: dict[str, Any] = {}
    for name, jobs in cases.items():
        ways, failed = _ways(p, jobs, (2,) if quick else (1, 4))
        timed = in_turns(ways, 1 if quick else 10)
        for way, seconds in timed.items():
            micro = seconds["median"] / STEPS * 1e6
            print(f"{name}: {way:<36} {micro:10.1f} µs a step", flush=True)
        found[name] = {
            "models": len(jobs), "steps a sample": STEPS, "flop a step": _flop(p, jobs),
            "times": timed, "failed": failed,
        }  # fmt: skip
    notebook = {
        d: _notebook_seconds_a_step(p, d, 1 if quick else 3) for d in sorted({min(16, p), p})
    }
    return {"p": p, "cases": found, "notebook, seconds a step of one model": notebook}


def command(quick: bool) -> dict[str, Any]:
    """Seconds of training, and of `python sweep.py --fused` from the command to the folder."""
    small = {"p": 5, "widths": (2, 1), "steps": 20, "remainders": (0,)} if quick else {}
    configs = {"one seed": SweepConfig(**small)}
    if not quick:
        configs["64 seeds"] = SweepConfig(seeds=tuple(range(64)), remainders=())
        for precision in ("high", "tf32"):
            configs[f"one seed, {precision}"] = SweepConfig(precision=precision)
    found: dict[str, Any] = {}
    for name, config in configs.items():
        backend = GpuBackend(DEVICE, "benchmark", None if ON_GPU else 2**30)
        warm = SweepConfig(**vars(config) | {"steps": 2})
        list(train(backend, warm))
        start = time.perf_counter()
        ended = [event for event in train(backend, config) if hasattr(event, "record")]
        seconds = time.perf_counter() - start
        rows = [event.record.row(event.job) for event in ended]
        taken = sum(row["steps"] for row in rows)
        found[name] = {
            "training seconds": seconds, "models": len(rows), "steps of all models": taken,
            "perfect": sum(row["perfect"] for row in rows),
        }  # fmt: skip
        print(f"{name}: {seconds:.2f} s of training, {taken:,} steps", flush=True)
    if not quick:
        found["command"] = [_command_seconds() for _ in range(3)]
        print(f"command to folder: {found['command']} s", flush=True)
    return found


def _command_seconds() -> float:
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, "sweep.py", "--fused", "--out", f"{folder}/run"]
        start = time.perf_counter()
        subprocess.run(line, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start


def frontier(quick: bool) -> dict[str, Any]:
    """Share of perfect seeds by width, for several moduli."""
    found: dict[str, Any] = {}
    end = time.perf_counter() + 420
    for p in (5,) if quick else (64, 59, 97, 113):
        if time.perf_counter() > end:
            found[str(p)] = {"left out": "out of time"}
            continue
        widths = (2, 1) if quick else tuple(range(min(p, 24), 3, -1))
        config = SweepConfig(
            p=p, widths=widths, seeds=tuple(range(1 if quick else 64)),
            steps=20 if quick else 6000, remainders=(),
        )  # fmt: skip
        backend = GpuBackend(DEVICE, "benchmark", None if ON_GPU else 2**30)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            results = run_sweep(config, backend, Path(folder) / "run")
            seconds = time.perf_counter() - start
            found[str(p)] = {
                "seconds": seconds, "recipe": config.to_json(), **frontier_of(results.table)
            }  # fmt: skip
        print(f"p={p}: smallest perfect {found[str(p)]['smallest_perfect_width']}, {seconds:.0f} s")
    return found


PARTS = {"steps": steps, "command": command, "frontier": frontier}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("file", type=Path)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    args.file.write_text(json.dumps(PARTS[args.part](args.quick), indent=1) + "\n")


if __name__ == "__main__":
    main()
