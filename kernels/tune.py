"""Measure tiles and crossovers on the GPU at hand and write the dispatch table anew.

    python -m bilinear.kernels.tune [--dry-run] [--kind half tf32 ...] [--output FILE]

Every time is a median of `triton.testing.do_bench`. A dry run lists the candidates and writes
nothing. `searched_tile` is the same search for one kernel and size class, for BILINEAR_AUTOTUNE=1.
"""

import argparse
import copy
import functools
import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import dispatch
from .tiles import Tile

Timer = Callable[[Callable[[], object]], float]

# Sizes at which tiles are compared: typical, and large enough to fill a device.
_D_IN, _D, _D_OUT = 512, 512, 512
_SMALL = {"d_in": 128, "d": 64, "d_out": 64}
_LARGE_M = 16384
_CROSSOVER_M = 8192
_DTYPE = {"half": torch.bfloat16, "float64": torch.float64}


def candidates(kernel: str, around: Tile) -> list[Tile]:
    """Tiles near the table's: every block halved or doubled, warps 4 or 8, 1 to 4 stages.

    The one-pass backward keeps its d, d_in and d_out blocks: they are what it can hold.
    """
    sizes: dict[str, tuple[int, ...]] = {}
    for name in ("block_m", "block_d", "block_n", "block_k"):
        size = getattr(around, name)
        fixed = size == 0 or (kernel == "mlp_backward" and name != "block_m")
        sizes[name] = (size,) if fixed else (max(16, size // 2), size, min(256, size * 2))
    found = {around}
    for blocks in itertools.product(*sizes.values()):
        # One block at a time, and all combinations of warps and stages on it.
        changed = sum(new != getattr(around, name) for name, new in zip(sizes, blocks, strict=True))
        if changed > 1:
            continue
        shaped = replace(around, **dict(zip(sizes, blocks, strict=True)))
        for warps, stages in itertools.product((4, 8), (1, 2, 3, 4)):
            found.add(replace(shaped, num_warps=warps, num_stages=stages))
    return sorted(found, key=lambda tile: tuple(asdict(tile).values()))


def fastest(tiles: Iterable[Tile], run: Callable[[Tile], object], timer: Timer) -> Tile | None:
    """The tile with the least time; those that the device or the compiler refuses are left out."""
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    best, least = None, float("inf")
    for tile in tiles:
        try:
            spent = timer(functools.partial(run, tile))
        except (OutOfResources, PTXASError, CompilationError):
            continue
        if spent < least:
            best, least = tile, spent
    return best


def gpu_timer(run: Callable[[], object]) -> float:
    """Median milliseconds of `run`, after warm-up, on the current CUDA device."""
    from triton.testing import do_bench

    return float(do_bench(run, warmup=10, rep=50, return_mode="median"))


def runner(kernel: str, m: int, kind: str, device: str = "cuda") -> Callable[[Tile], object]:
    """A function that runs `kernel` with a given tile on fresh inputs of m rows."""
    from . import dual, mlp

    small = kernel == "mlp_backward"
    d_in = _SMALL["d_in"] if small else _D_IN
    d, d_out = (_SMALL["d"], _SMALL["d_out"]) if small else (_D, _D_OUT)
    if kernel.startswith("mlp") and not small:
        d_in = d = d_out = 256
    precision = "ieee" if kind in _DTYPE else kind
    dtype = _DTYPE.get(kind, torch.float32)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    x, weight, dh, lr = normal(m, d_in), normal(2 * d, d_in), normal(m, d), normal(m, 2 * d)
    w_p, dout = normal(d_out, d), normal(m, d_out)
    unfit = Tile(block_m=0, num_warps=4, num_stages=1)

    def whole(tile: Tile, *needs: str) -> object:
        config = {"mlp_backward": unfit, kernel: tile}
        return mlp.mlp_backward(
            dout, x, weight, None, w_p, precision=precision, needs=needs, config=config
        )

    runs: dict[str, Callable[[Tile], object]] = {
        "dual_forward": lambda t: dual.dual_forward(x, weight, None, precision=precision, config=t),
        "dual_backward": lambda t: dual.dual_backward(
            dh, x, weight, None, precision=precision, config=t
        ),
        "dual_backward_input": lambda t: dual.dual_backward_input(
            dh, lr, weight, precision=precision, config=t
        ),
        "dual_backward_weight": lambda t: dual.dual_backward_weight(
            dh, lr, x, precision=precision, bias=False, config=t
        ),
        "mlp_forward": lambda t: mlp.mlp_forward(
            x, weight, None, w_p, None, precision=precision, config=t
        ),
        "mlp_backward": lambda t: whole(t, "x", "weight", "w_p"),
        "mlp_backward_input": lambda t: whole(t, "x"),
        "mlp_backward_weight": lambda t: whole(t, "weight"),
        "mlp_backward_projection": lambda t: whole(t, "w_p"),
    }
    return runs[kernel]


@functools.cache
def searched_tile(kernel: str, m: int, kind: str, device: str) -> Tile:
    """The fastest tile of one kernel for a class of rows, searched once a process."""
    around = table_tile(kernel, m, kind, device)
    if not torch.cuda.is_available():
        raise RuntimeError(f"{dispatch.AUTOTUNE}: expected a CUDA device to search on, found none")
    return fastest(candidates(kernel, around), runner(kernel, m, kind), gpu_timer) or around


def table_tile(kernel: str, m: int, kind: str, device: str) -> Tile:
    """The committed table's tile, whatever the environment asks for."""
    entry = dispatch.table()["tiles"][device][kind][kernel]
    return Tile(**entry["small" if m <= dispatch.table()["small_m"] else "large"])


def tuned_tiles(
    device: str, kinds: Iterable[str], timer: Timer, *, on: str = "cuda"
) -> dict[str, dict[str, dict[str, dict[str, int]]]]:
    """The table's "tiles" of one class of device, each kernel's fastest at both row classes."""
    small_m = dispatch.table()["small_m"]
    tiles: dict[str, dict[str, dict[str, dict[str, int]]]] = {}
    for kind in kinds:
        tiles[kind] = {}
        for kernel in dispatch.table()["tiles"][device][kind]:
            tiles[kind][kernel] = {}
            for name, m in (("small", small_m), ("large", _LARGE_M)):
                around = table_tile(kernel, m, kind, device)
                run = runner(kernel, m, kind, on)
                best = fastest(candidates(kernel, around), run, timer) or around
                tiles[kind][kernel][name] = asdict(best)
    return tiles


def dual_crossover(direction: str, kind: str, timer: Timer, *, on: str = "cuda") -> int:
    """Largest d_in at which the dual matmul is no slower than library matmul plus elementwise.

    Takes the first loss as the end: above it the table never chooses the dual matmul.
    """
    from . import dual

    precision = "ieee" if kind in _DTYPE else kind
    dtype, m, d = _DTYPE.get(kind, torch.float32), _CROSSOVER_M, 1024
    won = 0
    for d_in in (64, 128, 256, 512, 1024, 2048, 4096, 8192):
        x = torch.randn(m, d_in, device=on).to(dtype)
        weight = torch.randn(2 * d, d_in, device=on).to(dtype)
        dh = torch.randn(m, d, device=on).to(dtype)
        calls: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "forward": (
                functools.partial(dual.dual_forward, x, weight, None, precision=precision),
                functools.partial(_library_forward, x, weight),
            ),
            "backward": (
                functools.partial(dual.dual_backward, dh, x, weight, None, precision=precision),
                functools.partial(_library_backward, dh, x, weight),
            ),
        }
        fused, library = calls[direction]
        if timer(fused) > timer(library):
            break
        won = d_in
    return won


def _library_forward(x: Tensor, weight: Tensor) -> Tensor:
    from . import pointwise

    return pointwise.product_forward(x @ weight.T)


def _library_backward(dh: Tensor, x: Tensor, weight: Tensor) -> object:
    from . import pointwise

    return pointwise.product_backward(dh, x @ weight.T)


def tuned_table(device: str, kinds: list[str], timer: Timer) -> dict[str, Any]:
    """The committed table with the measured tiles and dual crossovers of one class of device.

    The sizes up to which the fully fused path runs are left as they are.
    """
    table = copy.deepcopy(dispatch.table())
    table["tiles"][device] |= tuned_tiles(device, kinds, timer)
    for kind, direction in itertools.product(kinds, ("forward", "backward")):
        limit = dual_crossover(direction, kind, timer)
        table["paths"][device][kind][f"dual_{direction}"]["d_in"] = limit
    name = torch.cuda.get_device_name()
    table["source"] = f"{device} measured on {name} for {', '.join(kinds)}; the rest by counting"
    table["measured"] = True
    return table


def main() -> None:
    """Parse arguments, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", nargs="+", default=["half", "tf32", "tf32x3", "ieee"])
    parser.add_argument("--output", type=Path, default=dispatch.TABLE)
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    if arguments.dry_run:
        for kind in arguments.kind:
            for kernel in dispatch.table()["tiles"]["sm_90"][kind]:
                count = len(candidates(kernel, table_tile(kernel, _LARGE_M, kind, "sm_90")))
                print(f"{kind:<8}{kernel:<25}{count} candidates")
        return
    if not torch.cuda.is_available():
        parser.error("needs a CUDA device; torch.cuda.is_available() is False (try --dry-run)")
    device = dispatch.device_class(torch.cuda.get_device_capability())
    table = tuned_table(device, arguments.kind, gpu_timer)
    arguments.output.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
