"""The layer against PyTorch and every fused layer that is installed, by shape, dtype and rows."""

from functools import cache, partial
from itertools import product
from statistics import median
from typing import Any

import torch

from bench.measure import least_work, peers
from bench.measure.clock import call_seconds, event_seconds
from bench.measure.layer_ways import OURS, contestants
from bench.measure.roofs import KINDS, measure
from bench.measure.turns import Contestants, take_turns
from bench.visit.items import Item, Visit

Shape = tuple[int, int, int | None]
# (d_in, d, d_out); None: without projection. First those where fusing should be faster, then those
# where it must not be slower: time may run out before the last.
SHAPES: list[Shape] = [
    (128, 64, 64),
    (512, 512, None),
    (1024, 1024, None),
    (4096, 11008, None),
    (256, 128, 128),
    (128, 128, None),
    (512, 256, 512),
    (1024, 4096, None),
    (512, 1024, 512),
    (128, 16, 128),
]
# torch.compile is measured at the first only: it compiles for seconds for each number of rows.
ROWS = [16384, 4096, 65536]
# So few rows that Python and the launches take longer than the kernels: these contests tell whether
# such calls should run a library matmul and a kernel, as they do, or eager.
FEW_ROWS = 64
FEW_ROWS_SHAPES: list[Shape] = [
    (128, 64, 64),
    (512, 512, None),
    (512, 256, 512),
    (1024, 4096, None),
]
# Shapes at which torch.compile with max-autotune is measured, too; its search takes a minute.
AUTOTUNED: list[Shape] = [(128, 64, 64), (512, 512, None)]
_BACKWARD = "forward and backward"
_roofs = cache(measure)  # a process measures them once


def items(visit: Visit) -> list[Item]:
    """Return a contest for each number of rows, dtype, shape and direction.

    Those of 16384 rows come first, but after the first dtype's first shapes come those of few rows;
    then those with max-autotune; then other numbers of rows.
    """
    directions = least_work.DIRECTIONS
    if visit.quick:
        small = product([64], KINDS, [(16, 8, 8), (16, 8, None)], directions)
        return [_item(*one) for one in small]
    first, *kinds = KINDS
    found = [_item(*one) for one in product(ROWS[:1], [first], SHAPES[:2], directions)]
    found += [_item(*one) for one in product([FEW_ROWS], [first], FEW_ROWS_SHAPES, directions)]
    found += [_item(*one) for one in product(ROWS[:1], [first], SHAPES[2:], directions)]
    found += [_item(*one) for one in product(ROWS[:1], kinds, SHAPES, directions)]
    found += [_item(ROWS[0], first, shape, _BACKWARD, searched=True) for shape in AUTOTUNED]
    return found + [_item(*one) for one in product(ROWS[1:], KINDS, SHAPES, directions)]


def finish(content: dict[str, Any], visit: Visit) -> None:
    """Add the contests as rows, which `bench.compare` reads."""
    content["rows"] = [found["row"] for found in content["items"].values() if "row" in found]


def _item(m: int, kind: str, shape: Shape, direction: str, *, searched: bool = False) -> Item:
    key = f"{kind} {direction} m={m} {shape}" + (" max-autotune" if searched else "")
    contest = partial(_contest, m, kind, shape, direction, searched)
    return Item(key, contest, least=20, most=240 if searched else 60)


def _contest(
    m: int, kind: str, shape: Shape, direction: str, searched: bool, visit: Visit
) -> dict[str, Any]:
    d_in, d, d_out = shape
    op = "mlp" if d_out else "layer"
    dtype, precision = KINDS[kind]
    there, absent = _ways(visit, op, m, dtype, searched)
    sets = 2 if visit.quick else None
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        made = contestants(
            op, (m, d_in, d), there, direction, dtype, str(visit.device), d_out, sets, absent
        )
        times = _times(visit, made, 0.4)
    finally:
        torch.set_float32_matmul_precision(before)
    least = least_work.DIRECTIONS[direction](m, d_in, d, d_out, dtype.itemsize)
    roofs = _roofs(visit.device, tiny=visit.quick)
    for timed in times.values():
        timed["share of the roof"] = roofs.share(least.flop, least.moved, timed["median"], kind)
    best = min(timed["median"] for way, timed in times.items() if way not in OURS)
    ratio = best / times["fused"]["median"]
    row = {
        "shape": shape, "m": m, "kind": kind, "direction": direction,
        "flop": least.flop, "bytes": least.moved, "times": times,
        "times_faster_than_best_peer": ratio, "absent": absent,
    }  # fmt: skip
    return {"row": row, "told": f"{ratio:.2f}x the best peer"}


def _times(visit: Visit, ways: Contestants, seconds: float) -> dict[str, Any]:
    """Time the ways in turns; returns median and spread in seconds of each."""
    once = event_seconds if visit.device.type == "cuda" else call_seconds
    samples = take_turns(ways, 0.02 if visit.quick else seconds, 5, once, most_rounds=500)
    return {
        name: {
            "median": median(values),
            "p10": sorted(values)[len(values) // 10],
            "p90": sorted(values)[len(values) * 9 // 10],
            "rounds": len(values),
        }
        for name, values in samples.items()
    }


def _ways(
    visit: Visit, op: str, m: int, dtype: torch.dtype, searched: bool
) -> tuple[list[str], dict[str, str]]:
    """Return the ways that can run here, and for each other way why it cannot."""
    absent = {name: peers.absent(name, op, visit.device, dtype) for name in peers.PEERS}
    if not searched:
        absent["max-autotune"] = "measured at a few shapes only: its search takes a minute"
    if m != ROWS[0] and not visit.quick:
        absent["compile"] = f"measured at {ROWS[0]} rows only: it takes seconds a shape to compile"
    if visit.quick:
        absent["compile"] = "left out of a dry run: it takes long to compile"
    there = [name for name in peers.PEERS if not absent[name]]
    return [*OURS, *there], {name: why for name, why in absent.items() if why}
