"""Registers, spills and shared memory of every compiled kernel of the dispatch table.

    python -m bench.compile_report [--only 90:half 80:tf32 ...] [--match dual] [--gates silu gelu]

Needs no GPU and no driver: launchers run on meta tensors, their launches are recorded, and each is
compiled ahead of time for the given device. For Hopper it also lists the instructions in an
iteration of each kernel's hot loop, and the cycles that `bench/model` predicts for it.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context

import torch
from torch import Tensor

from bench.measure.ahead_of_time import compile_launch, cuobjdump, serialised
from bench.model.machine_code import hot_loop, parse
from bench.model.scoreboard import model
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.record import Job
from bilinear.kernels import dispatch
from bilinear.kernels.dual import (
    dual_backward,
    dual_backward_input,
    dual_backward_weight,
    dual_forward,
)
from bilinear.kernels.gates_device import GATES
from bilinear.kernels.grid_triton import TILE
from bilinear.kernels.launch import Launch, recording
from bilinear.kernels.mlp import mlp_backward, mlp_forward
from bilinear.kernels.pointwise import product_backward, product_forward
from bilinear.training.gpu import make_grid

# The most bytes of shared memory that one program may use, by compute capability.
SHARED_LIMIT = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448}
ROWS = 8192
# Arithmetic of a training step's matmuls, and the library's name for it.
GRID_PRECISION = {"tf32": "tf32", "bf16x3": "high", "bf16x6": "highest"}
# (p, width) of training steps: one and two tiles of classes, one and several blocks of units.
GRID_SIZES = [(64, 16), (64, 32), (64, 64), (113, 16), (97, 32)]
# By shape of the loop over steps: two launches a step, as the sweep runs; at fewer sizes one launch
# for many steps ("run"), and for many minibatches ("batch").
GRID_SHAPES = {"step": GRID_SIZES, "run": [(64, 16)], "batch": [(64, 16), (113, 16)]}
KINDS = ("half", "tf32", "tf32x3", "ieee", "bf16x3", "bf16x6")
_DTYPE = {"half": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class HotLoop:
    """Model of one iteration of the loop with most tensor work, on one multiprocessor.

    `cycles` is what the program's warps take, `tensor` the cycles in which tensor cores are busy,
    `slots` the issue slots of a scheduler, `waits` the cycles without an issue, by cause. The floor
    is the larger of `tensor` and `slots`: an iteration cannot take fewer cycles.
    """

    instructions: dict[str, int]
    cycles: float
    tensor: float
    slots: int
    waits: dict[str, float]

    @property
    def of_floor(self) -> float:
        """Cycles divided by the floor."""
        return self.cycles / max(self.tensor, self.slots)


@dataclass(frozen=True)
class Usage:
    """Resources of one compiled variant; `stack` is bytes of spilled registers a thread.

    `serialised`: on Hopper the compiler made each wgmma wait for the one before.
    """

    kernel: str
    gate: str
    kind: str
    rows: int
    capability: int
    tile: str
    registers: int
    stack: int
    shared: int
    wgmma: bool
    serialised: bool
    loop: HotLoop | None


def launches(
    name: str, kind: str, capability: int, rows: int = ROWS, gate: str = "identity"
) -> list[Launch]:
    """Return what the launcher of kernel `name` starts for `rows` rows, with the table's tile."""
    if name.startswith("grid"):
        return _grid_launches(name, kind, capability)
    device = dispatch.device_class(divmod(capability, 10))
    precision = "ieee" if kind in _DTYPE else kind
    tile = dispatch.tile_of_class(name, rows, kind, device) if name != "pointwise" else None
    d_in, d, d_out = 1024, 1024, 1024
    if name.startswith("mlp"):
        most = dispatch.table()["paths"][device][kind][
            "mlp_forward" if name == "mlp_forward" else "mlp_backward"
        ]
        d_in, d, d_out = most["d_in"], most["d"], most["d_out"]
        if name == "mlp_backward" and tile is not None:
            d_in, d, d_out = tile.block_k, tile.block_d, tile.block_n
    if gate != "identity" and name in ("dual_backward_input", "dual_backward_weight"):
        d_in = dispatch.table()["paths"][device][kind]["dual_backward"][
            "d_in"
        ]  # the most of any call
    if name == "dual_backward" and tile is not None:
        tile = dispatch.tile_for_gate(tile, gate)
    dtype = _DTYPE.get(kind, torch.float32)

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x, weight, bias = empty(rows, d_in), empty(2 * d, d_in), empty(2 * d)
    dh, preact, w_p, dout = empty(rows, d), empty(rows, 2 * d), empty(d_out, d), empty(rows, d_out)

    def whole_backward(*needs: str) -> None:
        configs = {name: tile} if tile else {}
        if name != "mlp_backward":
            configs["mlp_backward"] = dispatch.Tile(block_m=0, num_warps=0, num_stages=0)
        mlp_backward(
            dout, x, weight, bias, w_p,
            precision=precision, needs=needs, config=configs, gate=gate,
        )  # fmt: skip

    with_tile = {"precision": precision, "config": tile, "gate": gate}
    run: dict[str, Callable[[], object]] = {
        "dual_forward": lambda: dual_forward(x, weight, bias, save_preact=True, **with_tile),
        "dual_backward": lambda: dual_backward(dh, x, weight, bias, with_h=True, **with_tile),
        "dual_backward_input": lambda: dual_backward_input(dh, preact, weight, **with_tile),
        "dual_backward_weight": lambda: dual_backward_weight(dh, preact, x, bias=True, **with_tile),
        "mlp_forward": lambda: mlp_forward(x, weight, bias, w_p, bias[:d_out], **with_tile),
        "mlp_backward": lambda: whole_backward("x", "weight", "bias", "w_p"),
        "mlp_backward_input": lambda: whole_backward("x"),
        "mlp_backward_weight": lambda: whole_backward("weight", "bias"),
        "mlp_backward_projection": lambda: whole_backward("w_p"),
        "pointwise": lambda: (
            product_forward(preact, gate),
            product_backward(dh, preact, gate, with_h=True),
        ),
    }
    found: list[Launch] = []
    with recording(found.append):
        run[name]()
    return [one for one in found if one.kernel.fn.__name__ != "add_kernel"]


def _grid_launches(name: str, kind: str, capability: int) -> list[Launch]:
    """Return the launches of `grid_SHAPE_P_WIDTH`: two for a step, one for a run or a batch."""
    _, shape, p, d = name.split("_")
    config = SweepConfig(
        p=int(p),
        widths=(int(d),),
        remainders=(),
        batch_size=64 if shape == "batch" else 0,
        precision=GRID_PRECISION[kind],
    )
    chunks = 4 if shape == "step" else 1
    # For meta tensors a launcher chooses the tile of Hopper.
    tile = None if capability == 90 else TILE
    grid = make_grid(config, [Job(int(d), 0)], torch.device("meta"), chunks, tile)
    models = torch.empty(1, dtype=torch.int32, device="meta")
    found: list[Launch] = []
    with recording(found.append):
        grid.step(models) if shape == "step" else grid.run(models, 1)
    return found


def _measure(job: tuple[str, str, int, int, str]) -> list[Usage]:
    name, kind, capability, rows, gate = job
    found = []
    for start in launches(*job):
        made = compile_launch(start, capability)
        blocks = {
            k: v
            for k, v in start.constants.items()
            if k in ("BM", "BD", "BN", "BK", "BA", "C", "D", "U", "HOLD")
        }
        shape = " ".join(f"{key}={size}" for key, size in blocks.items())
        tile = f"{shape} w={start.tile.num_warps} s={start.tile.num_stages}"
        waits = made.wgmma and serialised(made.ptx)
        used = (made.registers, made.stack, made.shared, made.wgmma, waits)
        loop = _hot_loop(made.cubin, start.tile.num_warps) if capability == 90 else None
        found.append(Usage(name, gate, kind, rows, capability, tile, *used, loop))
    return found


def _hot_loop(cubin: bytes, warps: int) -> HotLoop | None:
    loop = hot_loop(parse(cuobjdump(cubin, "-sass")))
    if loop is None or not loop.counts["tensor"]:
        return None
    found = model(loop, warps)
    return HotLoop(dict(loop.counts), found.cycles, found.tensor, found.issued, found.waits)


def jobs(capability: int, kind: str) -> Iterator[tuple[str, str, int, int]]:
    """Yield (kernel, arithmetic, capability, rows) of every distinct entry of the table."""
    device = dispatch.device_class(divmod(capability, 10))
    if kind in GRID_PRECISION:
        for shape, sizes in GRID_SHAPES.items():
            for p, d in sizes:
                yield f"grid_{shape}_{p}_{d}", kind, capability, 1
    for name, entry in dispatch.table()["tiles"][device].get(kind, {}).items():
        yield name, kind, capability, ROWS
        if entry["small"] != entry["large"]:
            yield name, kind, capability, dispatch.table()["small_m"]
    if kind == "half":
        yield "pointwise", kind, capability, ROWS


def report(
    targets: list[tuple[int, str]],
    match: str = "",
    gates: Sequence[str] = ("identity",),
    processes: int = 2,
) -> list[Usage]:
    """Compile the table's variants of each (capability, arithmetic); `match` is part of a name."""
    wanted = [
        (*job, gate)
        for target, gate in product(targets, gates)
        for job in jobs(*target)
        if match in job[0] and (gate == "identity" or not job[0].startswith("grid"))
    ]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return [usage for found in pool.map(_measure, wanted) for usage in found]


def _table(usages: list[Usage]) -> str:
    lines = [
        f"{'kernel':<25}{'gate':<10}{'kind':<8}{'rows':>5}  {'sm':<4}{'tile':<42}"
        f"{'registers':>9}{'stack':>7}{'shared':>9}  wgmma"
    ]
    lines += [
        f"{u.kernel:<25}{u.gate:<10}{u.kind:<8}{u.rows:>5}  {u.capability:<4}{u.tile:<42}"
        f"{u.registers:>9}{u.stack:>7}{u.shared:>9}  {_wgmma(u)}"
        for u in usages
    ]
    return "\n".join(lines)


def _wgmma(usage: Usage) -> str:
    return "serialised" if usage.serialised else "yes" if usage.wgmma else "no"


def _loops(usages: list[Usage]) -> str:
    """Format a table of hot loops as modelled: cycles, instructions and waits of an iteration."""
    lines = [
        f"{'hot loop, modelled':<25}{'kind':<8}{'rows':>5}{'cycles':>8}{'tensor':>8}{'slots':>7}"
        f"{'of floor':>10}  instructions; waits"
    ]
    for u in usages:
        if u.loop is not None:
            made = " ".join(f"{kind} {n}" for kind, n in sorted(u.loop.instructions.items()))
            waits = " ".join(f"{cause} {n:.0f}" for cause, n in list(u.loop.waits.items())[:5])
            lines.append(
                f"{u.kernel:<25}{u.kind:<8}{u.rows:>5}{u.loop.cycles:>8.0f}{u.loop.tensor:>8.0f}"
                f"{u.loop.slots:>7}{u.loop.of_floor:>9.1f}x  {made}; {waits}"
            )
    return "\n".join(lines)


def _target(text: str) -> tuple[int, str]:
    capability, _, kind = text.partition(":")
    if kind not in (*KINDS, "float64") or not capability.isdecimal():
        raise argparse.ArgumentTypeError(f"expected SM:KIND as in 90:half, got {text!r}")
    return int(capability), kind


def main() -> None:
    """Parse arguments, compile, and print the tables or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    everything = [(capability, kind) for capability in (80, 89, 90) for kind in KINDS]
    parser.add_argument("--only", type=_target, nargs="+", default=everything, metavar="SM:KIND")
    parser.add_argument("--match", default="", help="only kernels whose name contains this")
    parser.add_argument("--gates", choices=GATES, nargs="+", default=["identity"])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    usages = report(arguments.only, arguments.match, arguments.gates)
    if arguments.json:
        json.dump([asdict(usage) for usage in usages], sys.stdout, indent=1)
    else:
        print(_table(usages), _loops(usages), sep="\n\n")


if __name__ == "__main__":
    main()
