"""Everything a visit to a GPU should do, in order of worth: `python -m bench.gpu`.

    tests    the tests marked `gpu`
    kernels  all tests of the kernels, compiled for this device
    command  the whole sweep: seconds of training, and from the command to the folder
    steps    a training step of many models, in both shapes of the loop, against ensembles
    roofs    copy bandwidth and matmul rates of this device: what all else is held against
    layer    the layer against eager, torch.compile, and a library matmul with one fused kernel
    tune     tiles and crossovers measured; writes kernels/table.json anew
    layer-tuned   the layer once more, on the new table
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench.environment import RESULTS, environment
from bilinear import composed
from bilinear.functional import bilinear, bilinear_mlp

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
ROWS = [4096, 16384, 65536]
# Shapes at which torch.compile searches for its best tiles too; it takes long to.
AUTOTUNED = [(128, 64, 64), (512, 512, None), (1024, 4096, None)]


@dataclass(frozen=True)
class Visit:
    """Where and how thoroughly to measure."""

    device: torch.device
    out: Path
    quick: bool

    def time(self, ways: dict[str, Callable[[int], object]], seconds: float) -> dict[str, Any]:
        """Median and spread in seconds of each way, round by round in turns.

        A way is called with the round's number, so that it can rotate its inputs past the cache.
        """
        for run in ways.values():
            for i in range(3):
                run(i)
        samples: dict[str, list[float]] = {name: [] for name in ways}
        end, rounds = time.perf_counter() + (0.05 if self.quick else seconds), 0
        while rounds < 5 or (time.perf_counter() < end and rounds < 500):
            for name, run in ways.items():
                samples[name].append(self._once(run, rounds))
            rounds += 1
        return {
            name: {
                "median": median(values),
                "p10": sorted(values)[len(values) // 10],
                "p90": sorted(values)[len(values) * 9 // 10],
                "rounds": rounds,
            }
            for name, values in samples.items()
        }

    def _once(self, run: Callable[[int], object], i: int) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            run(i)
            return time.perf_counter() - start
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        run(i)
        after.record()
        after.synchronize()
        return before.elapsed_time(after) / 1e3


def tests(visit: Visit) -> dict[str, Any]:
    """Run the tests marked `gpu`; keep the summary and the failures."""
    return _pytest(visit, "-m", "gpu", str(ROOT / "tests"))


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
    n = 2**20 if visit.quick else 2**30
    source = torch.randn(n, device=visit.device)
    target = torch.empty_like(source)
    copy = visit.time({"copy": lambda i: target.copy_(source)}, 3)["copy"]
    found: dict[str, Any] = {"copy_bytes_per_second": 8 * n / copy["median"], "copy": copy}
    size = 256 if visit.quick else 8192
    for name, dtype, precision in (
        ("bf16", torch.bfloat16, "highest"),
        ("tf32", torch.float32, "high"),
        ("fp32", torch.float32, "highest"),
    ):
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(size, size, device=visit.device, dtype=dtype) for _ in range(2))
        timed = visit.time({name: lambda i, a=a, b=b: a @ b}, 3)[name]
        found[name] = {"flop_per_second": 2 * size**3 / timed["median"], **timed}
    torch.set_float32_matmul_precision("highest")
    return found


def layer(visit: Visit) -> dict[str, Any]:
    """Time forward, and forward with backward, of every shape, dtype and number of rows."""
    rows = []
    kinds = [("bf16", torch.bfloat16, "highest"), ("tf32", torch.float32, "high")]
    kinds.append(("fp32", torch.float32, "highest"))
    grid = [(SHAPES[1], 64)] if visit.quick else list(product(SHAPES, ROWS))
    end = time.perf_counter() + PART_SECONDS - 60
    for (shape, m), (kind, dtype, precision) in product(grid, kinds):
        if time.perf_counter() > end:
            rows.append({"left_out": "out of time", "shape": shape, "m": m, "kind": kind})
            continue
        torch.set_float32_matmul_precision(precision)
        for direction in ("forward", "forward+backward"):
            ways = dict(_ways(visit, shape, m, dtype, direction))
            timed = visit.time(ways, 0.4)
            best = min(t["median"] for name, t in timed.items() if not name.startswith("fused"))
            ratio = best / timed["fused"]["median"]
            row = {"shape": shape, "m": m, "kind": kind, "direction": direction}
            rows.append({**row, "times": timed, "times_faster_than_best_peer": ratio})
            print(
                f"{kind} {direction:<17} m={m:<6} {shape}: {ratio:.2f}× the best peer", flush=True
            )
    torch.set_float32_matmul_precision("highest")
    return {"rows": rows}


def _ways(
    visit: Visit, shape: tuple, m: int, dtype: torch.dtype, direction: str
) -> Iterator[tuple[str, Callable[[int], object]]]:
    d_in, d, d_out = shape
    sizes = [(2 * d, d_in)] + ([(d_out, d)] if d_out else [])
    weights = [_random(visit, size, dtype, size[1] ** -0.5) for size in sizes]
    # As many inputs as pass the cache: 60 MB of L2 on an H200, four times over.
    sets = 2 if visit.quick else max(2, min(64, 2**28 // (m * d_in * dtype.itemsize)))
    inputs = [_random(visit, (m, d_in), dtype, 1.0) for _ in range(sets)]
    gradient = torch.randn(m, d_out or d, device=visit.device, dtype=dtype)

    fused = bilinear_mlp if d_out else bilinear
    eager = composed.bilinear_mlp if d_out else composed.bilinear
    none = (None, None) if d_out else (None,)
    functions: dict[str, Callable[..., Tensor]] = {
        "fused": fused,
        "fused, recompute": lambda *args: fused(*args, recompute=True),
        "eager": eager,
    }
    torch.compiler.reset()
    functions["compile"] = torch.compile(eager, dynamic=False)
    if shape in AUTOTUNED and m == 16384:
        mode = "max-autotune-no-cudagraphs"
        functions["compile max-autotune"] = torch.compile(eager, dynamic=False, mode=mode)

    def run(function: Callable[..., Tensor], i: int) -> object:
        x = inputs[i % sets]
        if direction == "forward":
            with torch.no_grad():
                return function(x, *weights, *none)
        return torch.autograd.grad(function(x, *weights, *none), [x, *weights], gradient)

    for name, function in functions.items():
        yield name, lambda i, function=function: run(function, i)  # type: ignore[misc]


def _random(visit: Visit, size: tuple[int, ...], dtype: torch.dtype, scale: float) -> Tensor:
    return torch.randn(size, device=visit.device, dtype=dtype).mul_(scale).requires_grad_()


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
    "command": _of_the_sweep("command"),
    "steps": _of_the_sweep("steps"),
    "roofs": roofs,
    "layer": layer,
    "tune": tune,
    "layer-tuned": layer,
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
            "environment": {**environment(), **_device(device)},
            "quick": args.quick,
            **found,
        }
        content["seconds"] = time.perf_counter() - start
        path = args.out / f"gpu-{name}.json"
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(f"{name}: {content['seconds']:.0f} s, wrote {path}", flush=True)
    return failed


def _device(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {}
    query = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,clocks.sm,clocks.mem",
        "--format=csv,noheader",
    ]
    clocks = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return {"gpu": torch.cuda.get_device_name(device), "clocks as found": clocks}


if __name__ == "__main__":
    sys.exit(main())
