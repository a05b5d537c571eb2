"""Everything a visit to a GPU should do, in order of worth: `python -m bench.gpu`.

    tests    the tests marked `gpu`
    kernels  all tests of the kernels, compiled for this device
    roofs    copy bandwidth and matmul rates of this device: what all else is held against
    tune     tiles and crossovers measured; writes kernels/table.json anew
    layer    the layer on that table, against PyTorch and every fused layer that is installed
    command  the whole sweep: seconds of training, and from the command to the folder
    steps    a training step of many models, in both shapes of the loop, against ensembles
    frontier share of perfect seeds by width, for four moduli

Each part writes gpu-PART.json as soon as it has it, and a part that fails leaves the others be.
Needs PyTorch ≥ 2.11, Triton ≥ 3.6 and pytest, no network and no installation. `--quick` runs the
same code on tiny shapes, on a CPU too, to see that it works; its figures mean nothing.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.measure import least_work, peers
from bench.measure.clock import call_seconds, event_seconds
from bench.measure.environment import RESULTS, clocks, environment
from bench.measure.layer_ways import OURS, contestants
from bench.measure.roofs import Roofs, measure
from bench.measure.turns import Contestants, take_turns
from bilinear.kernels import dispatch

ROOT = Path(__file__).parent.parent
PART_SECONDS = 540
# d_in, d, d_out; None: without projection.
SHAPES = [
    (128, 16, 128),
    (128, 64, 64),
    (256, 128, 128),
    (512, 256, 512),
    (128, 128, None),
    (512, 512, None),
    (1024, 1024, None),
    (1024, 4096, None),
    (4096, 11008, None),
]
# In order of worth: a part that runs out of time leaves the last ones out.
ROWS = [16384, 4096, 65536]
KINDS = {
    "bf16": (torch.bfloat16, "highest"),
    "tf32": (torch.float32, "high"),
    "fp32": (torch.float32, "highest"),
}
# Shapes at which torch.compile searches for its best tiles too; it takes long to.
AUTOTUNED = [(128, 64, 64), (512, 512, None), (1024, 4096, None)]


@dataclass
class Visit:
    """Where and how thoroughly to measure."""

    device: torch.device
    out: Path
    quick: bool

    @cached_property
    def roofs(self) -> Roofs:
        """This device's, measured once a visit."""
        return measure(self.device, tiny=self.quick)

    def time(self, ways: Contestants, seconds: float) -> dict[str, Any]:
        """Median and spread in seconds of each way, round by round in turns."""
        once = event_seconds if self.device.type == "cuda" else call_seconds
        samples = take_turns(ways, 0.02 if self.quick else seconds, 5, once, most_rounds=500)
        return {
            name: {
                "median": median(values),
                "p10": sorted(values)[len(values) // 10],
                "p90": sorted(values)[len(values) * 9 // 10],
                "rounds": len(values),
            }
            for name, values in samples.items()
        }


def tests(visit: Visit) -> dict[str, Any]:
    """Run the tests marked `gpu`; keep the summary and the failures."""
    few = ROOT / "tests" / "layer" / "test_custom_ops.py"
    return _pytest(visit, "-m", "gpu", str(few if visit.quick else ROOT / "tests"))


def kernel_tests(visit: Visit) -> dict[str, Any]:
    """Run every test of the kernels, which without a GPU run under the interpreter."""
    return _pytest(visit, str(ROOT / "tests" / "kernels"))


def _pytest(visit: Visit, *what: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    command += ["--continue-on-collection-errors", *what]
    if visit.quick:
        command.append("--collect-only")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=PART_SECONDS)
    lines = done.stdout.splitlines()
    print("\n".join(lines[-15:]))
    return {"exit": done.returncode, "summary": lines[-1:], "output": done.stdout[-20_000:]}


def _of_the_sweep(part: str) -> Callable[[Visit], dict[str, Any]]:
    """A part of `bench.gpu_sweep`, in a process of its own."""

    def run(visit: Visit) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "found.json"
            command = [sys.executable, "-m", "bench.gpu_sweep", part, str(file)]
            command += ["--quick"] if visit.quick else []
            subprocess.run(command, cwd=ROOT, check=True, timeout=PART_SECONDS)
            found: dict[str, Any] = json.loads(file.read_text())
        return found

    return run


def roofs(visit: Visit) -> dict[str, Any]:
    """Measure the two ceilings: bytes a second of a large copy, FLOP/s of a large matmul."""
    return {"roofs": visit.roofs.to_dict()}


def layer(visit: Visit) -> dict[str, Any]:
    """Time forward, and forward with backward, of every shape, dtype and number of rows."""
    dispatch.table.cache_clear()  # it may have been written anew
    shapes = SHAPES[1:2] if visit.quick else SHAPES
    grid = product([64] if visit.quick else ROWS, KINDS, shapes, least_work.DIRECTIONS)
    end = time.perf_counter() + PART_SECONDS - 60
    rows: list[dict[str, Any]] = []
    for m, kind, shape, direction in grid:
        row = {"shape": shape, "m": m, "kind": kind, "direction": direction}
        if time.perf_counter() > end:
            rows.append({**row, "left_out": "out of time"})
            continue
        rows.append({**row, **_layer_row(visit, m, kind, shape, direction)})
    return {"roofs": visit.roofs.to_dict(), "rows": rows}


def _layer_row(visit: Visit, m: int, kind: str, shape: tuple, direction: str) -> dict[str, Any]:
    d_in, d, d_out = shape
    op = "mlp" if d_out else "layer"
    dtype, precision = KINDS[kind]
    torch.set_float32_matmul_precision(precision)
    there, absent = _ways(visit, op, m, shape, dtype)
    device, sets = str(visit.device), 2 if visit.quick else None
    made = contestants(op, (m, d_in, d), there, direction, dtype, device, d_out, sets, absent)
    times = visit.time(made, 0.4)
    torch.set_float32_matmul_precision("highest")
    least = least_work.DIRECTIONS[direction](m, d_in, d, d_out, dtype.itemsize)
    for timed in times.values():
        timed["share of the roof"] = visit.roofs.share(
            least.flop, least.moved, timed["median"], kind
        )
    best = min(timed["median"] for way, timed in times.items() if way not in OURS)
    ratio = best / times["fused"]["median"]
    print(f"{kind} {direction:<20} m={m:<6} {shape}: {ratio:.2f}× the best peer", flush=True)
    return {
        "flop": least.flop,
        "bytes": least.moved,
        "times": times,
        "times_faster_than_best_peer": ratio,
        "absent": absent,
    }


def _ways(
    visit: Visit, op: str, m: int, shape: tuple, dtype: torch.dtype
) -> tuple[list[str], dict[str, str]]:
    """Ways that can be timed here, and why the other peers cannot."""
    absent = {name: peers.absent(name, op, visit.device, dtype) for name in peers.PEERS}
    if not (shape in AUTOTUNED and m == ROWS[0]):
        absent["max-autotune"] = "searched for at a few shapes only: it takes long"
    if visit.quick:
        absent["compile"] = "left out of a dry run: it takes long"
    there = [name for name in peers.PEERS if not absent[name]]
    return [*OURS, *there], {name: why for name, why in absent.items() if why}


def tune(visit: Visit) -> dict[str, Any]:
    """Write the dispatch table anew; the old one is in the repository's history."""
    command = [sys.executable, "-m", "bilinear.kernels.tune"]
    command += ["--dry-run"] if visit.quick else []
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=PART_SECONDS)
    print(done.stdout[-2000:], done.stderr[-2000:])
    table = json.loads((ROOT / "kernels" / "table.json").read_text())
    return {"exit": done.returncode, "output": done.stdout, "table": table}


PARTS: dict[str, Callable[[Visit], dict[str, Any]]] = {
    "tests": tests,
    "kernels": kernel_tests,
    "roofs": roofs,
    "tune": tune,
    "layer": layer,
    "command": _of_the_sweep("command"),
    "steps": _of_the_sweep("steps"),
    "frontier": _of_the_sweep("frontier"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the parts; returns how many failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that it runs")
    args = parser.parse_args(argv)
    if not (torch.cuda.is_available() or args.quick):
        parser.error("needs a CUDA device; torch.cuda.is_available() is False (try --quick)")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    visit = Visit(device, args.out, args.quick)
    args.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in args.parts:
        start = time.perf_counter()
        try:
            found = PARTS[name](visit)
        except Exception as error:  # the parts after it are worth having
            found, failed = {"failed": f"{type(error).__name__}: {error}"}, failed + 1
        content = {
            "environment": {**environment(), "clocks as found": clocks()},
            "quick": args.quick,
            **found,
        }
        content["seconds"] = time.perf_counter() - start
        path = args.out / f"gpu-{name}.json"
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(f"{name}: {content['seconds']:.0f} s, wrote {path}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
