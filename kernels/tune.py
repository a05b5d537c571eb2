"""Measure tiles on the GPU of this machine and write the dispatch table again.

    python -m bilinear.kernels.tune [--dry-run] [--kind half tf32 ...] [--seconds N] [--output FILE]

A handful of tiles a kernel, chosen by counting registers and shared memory, most valuable kernel
first; the table is written after each, so a run that is stopped keeps what it found. Every time is
a median of `triton.testing.do_bench`. A dry run lists the candidates and writes nothing.
"""

import argparse
import copy
import functools
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import dispatch
from .tiles import Tile

Timer = Callable[[Callable[[], object]], float]

_DTYPE = {"half": torch.bfloat16, "float64": torch.float64}
KINDS = ("half", "tf32", "tf32x3", "ieee")
# Kernels in the order in which they are tuned: those where users spend most time come first.
_BY_WORTH = (
    "mlp_forward", "mlp_backward", "dual_forward", "dual_backward_input", "dual_backward_weight",
    "dual_backward", "mlp_backward_input", "mlp_backward_weight", "mlp_backward_projection",
)  # fmt: skip
_LARGE_M = 16384
_MOST_CANDIDATES = 6
# Bytes of shared memory that a program may use; float32 accumulators that a thread may hold.
_SHARED = {"sm_90": 232_448, "sm_80": 101_376}
_ACCUMULATORS = 160
# By kernel: the (rows, columns) blocks it keeps in registers, and those that a step reads.
_KEEPS = {
    "dual_forward": [("m", "d")] * 2,
    "dual_backward": [("m", "d")] * 2,
    "dual_backward_input": [("m", "n")],
    "dual_backward_weight": [("d", "n")] * 2,
    "mlp_forward": [("m", "d")] * 2 + [("m", "n")],
    "mlp_backward": [("d", "k")] * 2 + [("d", "n")],
    "mlp_backward_input": [("m", "d")] * 3 + [("m", "n")],
    "mlp_backward_weight": [("m", "d")] * 3 + [("d", "n")] * 2,
    "mlp_backward_projection": [("m", "d")] * 2 + [("d", "n")],
}
_READS = {
    "dual_forward": [("m", "k"), ("d", "k"), ("d", "k")],
    "dual_backward": [("m", "k"), ("d", "k"), ("d", "k")],
    "dual_backward_input": [("m", "d")] * 3 + [("d", "n")] * 2,
    "dual_backward_weight": [("m", "d")] * 3 + [("m", "n")],
    "mlp_forward": [("m", "k"), ("d", "k"), ("d", "k")],
    "mlp_backward": [("m", "k"), ("m", "n")],
    "mlp_backward_input": [("m", "k"), ("d", "k"), ("d", "k")],
    "mlp_backward_weight": [("m", "k"), ("d", "k"), ("d", "k")],
    "mlp_backward_projection": [("m", "k"), ("d", "k"), ("d", "k")],
}


@dataclass(frozen=True)
class Entry:
    """One tile of the table: a kernel, its arithmetic, and "small" or "large" rows."""

    kernel: str
    kind: str
    rows: str

    @property
    def m(self) -> int:
        """Rows at which its tiles are compared."""
        small: int = dispatch.table()["small_m"]
        return small if self.rows == "small" else _LARGE_M


def entries(kinds: Iterable[str] = KINDS) -> list[Entry]:
    """Every tile to tune, in order of worth: many rows before few, then by kind as given."""
    kinds = list(kinds)
    return [
        Entry(kernel, kind, rows)
        for rows in ("large", "small")
        for kind in kinds
        for kernel in _BY_WORTH
    ]


def candidates(kernel: str, around: Tile, kind: str = "half", device: str = "sm_90") -> list[Tile]:
    """The table's tile, then up to five similar ones that fit the registers and the shared memory.

    More or fewer stages, the other number of warps, a block halved or doubled. The one-pass
    backward keeps its d, d_in and d_out blocks: they are the largest layer that it can run.
    """
    near = [
        replace(around, num_stages=around.num_stages + 1),
        replace(around, num_stages=max(1, around.num_stages - 1)),
        replace(around, num_warps=4 if around.num_warps == 8 else 8),
    ]
    for name in ("block_m", "block_k", "block_d", "block_n"):
        size = getattr(around, name)
        if size == 0 or (kernel == "mlp_backward" and name != "block_m"):
            continue
        near.append(replace(around, **{name: max(16, size // 2)}))
        near.append(replace(around, **{name: min(256, size * 2)}))
    found = [around]
    for tile in near:
        if tile not in found and fits(kernel, tile, kind, device):
            found.append(tile)
    return found[:_MOST_CANDIDATES]


def fits(kernel: str, tile: Tile, kind: str, device: str) -> bool:
    """Whether accumulators and pipelined operands fit the registers and the shared memory."""
    block = {"m": tile.block_m, "d": tile.block_d, "n": tile.block_n, "k": tile.block_k}
    itemsize = _DTYPE.get(kind, torch.float32).itemsize
    kept = sum(block[rows] * block[columns] for rows, columns in _KEEPS[kernel])
    read = sum(block[rows] * block[columns] for rows, columns in _READS[kernel])
    registers = kept * (2 if kind == "float64" else 1) / (32 * tile.num_warps)
    return registers <= _ACCUMULATORS and read * itemsize * tile.num_stages <= _SHARED[device]


def fastest(tiles: Iterable[Tile], run: Callable[[Tile], object], timer: Timer) -> Tile | None:
    """The tile with the least time; those that the device or the compiler refuses are left out."""
    best, least = None, float("inf")
    for tile in tiles:
        try:
            spent = timer(functools.partial(run, tile))
        except Exception:  # compilers raise many kinds: OutOfResources, RuntimeError, PTXASError, …
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # raises if the device no longer answers
            continue
        if spent < least:
            best, least = tile, spent
    return best


def gpu_timer(run: Callable[[], object]) -> float:
    """Median milliseconds of `run`, after warm-up, on the current CUDA device."""
    from triton.testing import do_bench

    return float(do_bench(run, warmup=10, rep=50, return_mode="median"))


def runner(
    kernel: str, m: int, kind: str, device: str = "cuda", *, tiny: bool = False
) -> Callable[[Tile], object]:
    """A function that runs `kernel` with a given tile on fresh inputs of m rows.

    The whole MLP's kernels run at sizes at which the whole MLP is chosen, the others at 512.
    """
    from . import dual, mlp

    d_in = d = d_out = 512
    if kernel == "mlp_backward":
        d_in, d, d_out = 128, 64, 64
    elif kernel.startswith("mlp"):
        d_in = d = d_out = 256
    if tiny:
        d_in = d = d_out = 16
    precision, dtype = _arithmetic(kind)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    x, weight, dh, preact = normal(m, d_in), normal(2 * d, d_in), normal(m, d), normal(m, 2 * d)
    w_p, dout = normal(d_out, d), normal(m, d_out)
    unfit = Tile(block_m=0, num_warps=4, num_stages=1)
    how: dict[str, Any] = {"precision": precision}

    def whole(tile: Tile, *needs: str) -> object:
        config = {"mlp_backward": unfit, kernel: tile}
        return mlp.mlp_backward(dout, x, weight, None, w_p, needs=needs, config=config, **how)

    runs: dict[str, Callable[[Tile], object]] = {
        "dual_forward": lambda t: dual.dual_forward(
            x, weight, None, save_preact=True, config=t, **how
        ),
        "dual_backward": lambda t: dual.dual_backward(dh, x, weight, None, config=t, **how),
        "dual_backward_input": lambda t: dual.dual_backward_input(
            dh, preact, weight, config=t, **how
        ),
        "dual_backward_weight": lambda t: dual.dual_backward_weight(
            dh, preact, x, bias=False, config=t, **how
        ),
        "mlp_forward": lambda t: mlp.mlp_forward(x, weight, None, w_p, None, config=t, **how),
        "mlp_backward": lambda t: whole(t, "x", "weight", "w_p"),
        "mlp_backward_input": lambda t: whole(t, "x"),
        "mlp_backward_weight": lambda t: whole(t, "weight"),
        "mlp_backward_projection": lambda t: whole(t, "w_p"),
    }
    return runs[kernel]


def tuned_tile(
    entry: Entry, device: str, timer: Timer, *, on: str = "cuda", tiny: bool = False
) -> Tile:
    """The fastest candidate of one entry; the table's own tile if none runs."""
    around = dispatch.tile_of_class(entry.kernel, entry.m, entry.kind, device)
    tiles = candidates(entry.kernel, around, entry.kind, device)
    run = runner(entry.kernel, 32 if tiny else entry.m, entry.kind, on, tiny=tiny)
    return fastest(tiles, run, timer) or around


def dual_crossover(
    direction: str, kind: str, timer: Timer, *, on: str = "cuda", tiny: bool = False
) -> int:
    """Largest d_in at which the dual matmul is no slower than library matmuls.

    Both ways do what a training step does: "forward" saves [L, R], "backward" gives dx and dweight
    from it, "recompute" gives them from x. The search ends at the first d_in at which the dual
    matmul loses, for the table never chooses it above that.
    """
    won = 0
    for d_in in (16, 32) if tiny else (64, 128, 256, 384, 512, 768, 1024, 1536, 2048):
        m = 32 if tiny else _LARGE_M
        fused, library = _dual_ways(direction, kind, m, d_in, 16 if tiny else d_in, on)
        if timer(fused) > timer(library):
            break
        won = d_in
    return won


def _dual_ways(
    direction: str, kind: str, m: int, d_in: int, d: int, on: str
) -> tuple[Callable[[], object], Callable[[], object]]:
    """The dual matmul's way and the library's, on the same fresh inputs."""
    from . import dual, pointwise

    precision, dtype = _arithmetic(kind)
    shapes = ((m, d_in), (2 * d, d_in), (m, d), (m, 2 * d))
    x, weight, dh, preact = (torch.randn(shape, device=on).to(dtype) for shape in shapes)
    how: dict[str, Any] = {"precision": precision}

    def gradients(d_preact: Tensor) -> object:
        return d_preact @ weight, d_preact.T @ x

    def fused_backward() -> object:
        dx = dual.dual_backward_input(dh, preact, weight, **how)
        return dx, dual.dual_backward_weight(dh, preact, x, bias=False, **how)

    ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "forward": (
            lambda: dual.dual_forward(x, weight, None, save_preact=True, **how),
            lambda: pointwise.product_forward(x @ weight.T),
        ),
        "backward": (
            fused_backward,
            lambda: gradients(pointwise.product_backward(dh, preact)[0]),
        ),
        "recompute": (
            lambda: gradients(dual.dual_backward(dh, x, weight, None, **how)[0]),
            lambda: gradients(pointwise.product_backward(dh, x @ weight.T)[0]),
        ),
    }
    return ways[direction]


def mlp_limits(
    direction: str, kind: str, device: str, timer: Timer, *, on: str = "cuda", tiny: bool = False
) -> dict[str, int]:
    """Sizes up to which the whole MLP in one kernel is no slower than the library's matmuls.

    The table's sizes, or a half, a quarter, an eighth of them all; zeros where it always loses.
    """
    from . import mlp, pointwise

    precision, dtype = _arithmetic(kind)
    most = dispatch.table()["paths"][device][kind][f"mlp_{direction}"]
    for part in (16,) if tiny else (1, 2, 4, 8):
        sizes = {name: max(1, size // part) for name, size in most.items()}
        m, d_in, d, d_out = 32 if tiny else _LARGE_M, sizes["d_in"], sizes["d"], sizes["d_out"]
        shapes = ((m, d_in), (2 * d, d_in), (d_out, d), (m, d_out))
        x, weight, w_p, dout = (torch.randn(shape, device=on).to(dtype) for shape in shapes)

        def fused(
            x: Tensor = x, weight: Tensor = weight, w_p: Tensor = w_p, dout: Tensor = dout
        ) -> object:
            if direction == "forward":
                return mlp.mlp_forward(x, weight, None, w_p, None, precision=precision)
            needs = ("x", "weight", "w_p")
            return mlp.mlp_backward(dout, x, weight, None, w_p, precision=precision, needs=needs)

        def library(
            x: Tensor = x, weight: Tensor = weight, w_p: Tensor = w_p, dout: Tensor = dout
        ) -> object:
            preact = x @ weight.T
            if direction == "forward":
                return pointwise.product_forward(preact) @ w_p.T
            d_preact, h = pointwise.product_backward(dout @ w_p, preact, with_h=True)
            return d_preact @ weight, d_preact.T @ x, None if h is None else dout.T @ h

        if timer(fused) <= timer(library):
            return sizes
    return dict.fromkeys(most, 0)


def _arithmetic(kind: str) -> tuple[str, torch.dtype]:
    return ("ieee" if kind in _DTYPE else kind), _DTYPE.get(kind, torch.float32)


def with_limits(
    table: dict[str, Any], device: str, kind: str, direction: str, timer: Timer, **where: Any
) -> dict[str, Any]:
    """The table with the measured crossovers of one arithmetic and direction.

    Directions are those of `dual_crossover`; the whole MLP's backward always recomputes.
    """
    found = copy.deepcopy(table)
    paths = found["paths"][device][kind]
    paths[f"dual_{direction}"]["d_in"] = dual_crossover(direction, kind, timer, **where)
    if direction != "recompute":
        paths[f"mlp_{direction}"] |= mlp_limits(direction, kind, device, timer, **where)
    return found


def with_tile(table: dict[str, Any], device: str, entry: Entry, tile: Tile) -> dict[str, Any]:
    """The table with one measured tile."""
    found = copy.deepcopy(table)
    found["tiles"][device][entry.kind][entry.kernel][entry.rows] = asdict(tile)
    return found


def signed(table: dict[str, Any], device: str, measured: Iterable[str], on: str) -> dict[str, Any]:
    """The table with a note of what was measured and on which device."""
    what = ", ".join(measured)
    source = f"{device} measured on {on}: {what}; the rest by counting"
    return copy.deepcopy(table) | {"source": source, "measured": True}


def save(table: dict[str, Any], path: Path) -> None:
    """Replace the table at once."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(table, indent=1) + "\n")
    os.replace(new, path)


def main() -> None:
    """Parse arguments and measure; the table is written after each kernel."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=["half", "tf32", "ieee"])
    parser.add_argument("--output", type=Path, default=dispatch.TABLE)
    parser.add_argument("--seconds", type=float, default=480.0, help="stop after these (480)")
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    if arguments.dry_run:
        for entry in entries(arguments.kind):
            around = dispatch.tile_of_class(entry.kernel, entry.m, entry.kind, "sm_90")
            count = len(candidates(entry.kernel, around, entry.kind))
            print(f"{entry.kind:<8}{entry.kernel:<25}{entry.rows:<7}{count} candidates")
        return
    if not torch.cuda.is_available():
        parser.error("needs a CUDA device; torch.cuda.is_available() is False (try --dry-run)")
    device = dispatch.device_class(torch.cuda.get_device_capability())
    name, end = torch.cuda.get_device_name(), time.monotonic() + arguments.seconds
    table, measured = dispatch.table(), []
    for entry in entries(arguments.kind):
        if time.monotonic() > end:
            break
        tile = tuned_tile(entry, device, gpu_timer)
        measured.append(f"{entry.kind} {entry.kernel} {entry.rows}")
        table = signed(with_tile(table, device, entry, tile), device, measured, name)
        save(table, arguments.output)
        print(f"{measured[-1]}: {tile}", flush=True)


if __name__ == "__main__":
    main()
