"""Hardware counters of three kernels, by Nsight Compute, without a change of the device's clocks.

The three are the ones in which training and the layer spend most time. A table compares the cycles
measured with those that `bench/model` predicts, so that the model can be corrected.

python -m bench.visit.counters NAME      runs one kernel; the profiler starts this command
"""

import csv
import io
import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench.visit.commands import run
from bench.visit.items import Item, Visit

_STALLS = (
    "long_scoreboard", "short_scoreboard", "barrier", "math_pipe_throttle", "mio_throttle",
    "wait", "gmma", "lg_throttle", "not_selected",
)  # fmt: skip
METRICS = [
    "gpu__time_duration.sum",
    "sm__cycles_elapsed.max",
    "smsp__inst_executed.sum",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "sm__inst_executed_pipe_tensor_op_gmma.avg.pct_of_peak_sustained_active",
    "sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active",
    "sm__inst_executed_pipe_fma.avg.pct_of_peak_sustained_active",
    "sm__inst_executed_pipe_alu.avg.pct_of_peak_sustained_active",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "lts__t_bytes.sum",
    "l1tex__data_bank_conflicts_pipe_lsu.sum",
    "smsp__inst_executed_op_local_ld.sum",
    "smsp__inst_executed_op_local_st.sum",
    *(f"smsp__average_warps_issue_stalled_{stall}_per_issue_active.ratio" for stall in _STALLS),
]


def items(visit: Visit) -> list[Item]:
    """Return two items for each kernel: its counters, and its cycles by the model."""
    found = [Item(name, partial(_counted, name), least=25, most=90) for name in RUNS]
    return found + [
        Item(f"modelled: {name}", partial(_modelled, name), least=20, most=60) for name in LOOPS
    ]


def finish(content: dict[str, Any], visit: Visit) -> None:
    """Add and print the table of modelled and measured cycles."""
    content["modelled against measured"] = against(content["items"])
    for row in content["modelled against measured"]:
        print(
            "  {kernel}: modelled {modelled:,.0f} cycles, measured {measured:,.0f}, "
            "ratio {ratio:.2f}".format(**row),
            flush=True,
        )


def against(items: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each kernel that was both profiled and modelled."""
    rows = []
    for name in LOOPS:
        counted = items.get(name, {}).get("counters", {}).get("sm__cycles_elapsed.max")
        modelled = items.get(f"modelled: {name}", {}).get("cycles")
        if counted and modelled:
            measured = float(counted.split()[0].replace(",", ""))
            rows.append({
                "kernel": name, "modelled": modelled, "measured": measured,
                "ratio": modelled / measured,
            })  # fmt: skip
    return rows


def _modelled(name: str, visit: Visit) -> dict[str, Any]:
    target, match, iterations = LOOPS[name]
    command = [sys.executable, "-m", "bench.compile_report", "--json"]
    command += ["--only", target, "--match", match]
    # The model needs Hopper's machine code, so kernels are compiled for Hopper on any device.
    log = visit.logs / f"modelled-{match}.log"
    done = run(command, visit.at_most(60), log, TRITON_INTERPRET="0")
    if done.exit != 0:
        return done.summary(3000) | {"failed": f"exit {done.exit}"}
    loops = [used["loop"] for used in json.loads(done.output[done.output.index("[") :])]
    an_iteration = next(loop["cycles"] for loop in loops if loop)
    cycles = an_iteration * iterations
    summary = f"{an_iteration:,.0f} cycles an iteration, {cycles:,.0f} a launch"
    return {"an iteration": an_iteration, "cycles": cycles, "told": summary}


def _counted(name: str, visit: Visit) -> dict[str, Any]:
    profiler = shutil.which("ncu")
    if profiler is None and not visit.quick:
        return {"left out": "ncu is not on the path"}
    kernel, _ = RUNS[name]
    prefix = [
        profiler, "--clock-control", "none", "--csv", "--page", "raw", "--kernel-name",
        f"regex:{kernel}", "--launch-skip", "1", "--launch-count", "1",
        "--metrics", ",".join(METRICS),
    ] if profiler else []  # fmt: skip
    this = [sys.executable, "-m", "bench.visit.counters", name]
    log = visit.logs / f"counters-{kernel}.log"
    done = run([*prefix, *this], visit.at_most(90), log)
    found = done.summary(3000) | {"counters": read(done.output)}
    found["told"] = f"{len(found['counters'])} counters"
    return found if done.exit == 0 else found | {"failed": f"exit {found['exit']}"}


def read(output: str) -> dict[str, str]:
    """Find the profiler's CSV in its output; returns each metric's value with its unit."""
    lines = output.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return {}
    rows = list(csv.reader(io.StringIO("\n".join(lines[start : start + 3]))))
    if len(rows) < 3:
        return {}
    names, units, values = rows[:3]
    wanted = zip(names, units, values, strict=False)
    return {name: f"{value} {unit}".strip() for name, unit, value in wanted if name in METRICS}


def _training(device: torch.device, d: int) -> None:
    from bilinear.experiment.config import SweepConfig
    from bilinear.experiment.record import Job
    from bilinear.kernels.grid_triton import chunks_of
    from bilinear.training.gpu import make_grid, recipe_of

    on_gpu = device.type == "cuda"
    p, seeds = (64, _MODELS) if on_gpu else (5, 1)
    config = SweepConfig(
        p=p, widths=(min(d, p),), seeds=tuple(range(seeds)), steps=1000, hold=10**6, remainders=()
    )
    jobs = [Job(min(d, p), seed) for seed in range(seeds)]
    grid = make_grid(config, jobs, device, chunks_of(recipe_of(config)))
    models = torch.arange(seeds, dtype=torch.int32, device=device)
    for _ in range(2):
        grid.step(models)


def _dual(device: torch.device) -> None:
    from bilinear.kernels.dual import dual_forward

    on_gpu = device.type == "cuda"
    m, size = (16384, 512) if on_gpu else (32, 16)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    x, weight = (torch.randn(n, size, device=device, dtype=dtype) for n in (m, 2 * size))
    for _ in range(2):
        dual_forward(x, weight, None, precision="ieee", save_preact=True)


# 33 models of four programs each fill the 132 multiprocessors of an H200 once.
_MODELS = 33
# For `bench.compile_report`: target, kernel, and how many iterations of the kernel's hot loop the
# busiest multiprocessor runs one after another. Training: one for each of 16 values of b. The dual
# kernel: 512 tiles run in four waves; a tile takes 512 / 64 iterations.
LOOPS = {
    "training, d = 16": ("90:bf16x6", "grid_step_64_16", 16),
    "training, d = 64": ("90:bf16x6", "grid_step_64_64", 16),
    "dual forward, 16384 x 512 x 512, bf16": ("90:half", "dual_forward", 32),
}
RUNS: dict[str, tuple[str, Callable[[torch.device], None]]] = {
    "training, d = 16": ("grid_step_kernel", partial(_training, d=16)),
    "training, d = 64": ("grid_step_kernel", partial(_training, d=64)),
    "dual forward, 16384 x 512 x 512, bf16": ("dual_kernel", _dual),
}


def main() -> None:
    """Run one kernel twice: the profiler skips the first launch, which follows compilation."""
    here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    RUNS[sys.argv[1]][1](here)
    if here.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
