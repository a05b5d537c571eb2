"""Measures the tiles and the crossovers of the dispatch table, `kernels/table.json`."""

from functools import partial
from typing import Any

import torch

from bench.measure.clock import call_seconds
from bench.visit.items import Item, Visit, write
from bilinear.kernels import dispatch, tune

_KINDS = ("half", "tf32", "ieee")
_QUICK_KERNELS = 3  # in a dry run


def items(visit: Visit) -> list[Item]:
    """Return an item for each tile and crossover, those of 16-bit tensors first.

    Tiles for few rows are last.
    """
    large = [entry for entry in tune.entries(_KINDS) if entry.rows == "large"]
    small = [entry for entry in tune.entries(_KINDS) if entry.rows == "small"]
    if visit.quick:
        # The interpreter's 16-bit product is wrong, and its float32 product ignores the precision.
        entries = [entry for entry in large if entry.kind == "ieee"][:_QUICK_KERNELS]
        return [*(_tile(entry) for entry in entries), _limits("ieee", "forward")]
    found = []
    for kind in _KINDS:
        found += [_tile(entry) for entry in large if entry.kind == kind]
        found += [_limits(kind, direction) for direction in ("forward", "backward", "recompute")]
    return found + [_tile(entry) for entry in small]


def finish(content: dict[str, Any], visit: Visit) -> None:
    """Add the dispatch table, with the tiles and limits measured so far."""
    content["table"] = made(content, visit)


def made(content: dict[str, Any], visit: Visit) -> dict[str, Any]:
    """Replace the committed table's tiles and limits by those measured; returns a new table."""
    device, table = _device(visit), dispatch.table()
    measured = []
    for key, found in content["items"].items():
        if "tile" in found:
            table = tune.with_tile(
                table, device, tune.Entry(*found["entry"]), dispatch.Tile(**found["tile"])
            )
        elif "limits" in found:
            paths, kind = table["paths"], found["kind"]
            of_kind = paths[device] | {kind: paths[device][kind] | found["limits"]}
            table = table | {"paths": paths | {device: of_kind}}
        else:
            continue
        measured.append(key)
    if not measured:
        return table
    name = torch.cuda.get_device_name() if visit.device.type == "cuda" else "a dry run"
    return tune.signed(table, device, measured, name)


def _device(visit: Visit) -> str:
    if visit.device.type != "cuda":
        return "sm_90"
    return dispatch.device_class(torch.cuda.get_device_capability())


def _how(visit: Visit) -> dict[str, Any]:
    timer = call_seconds if visit.quick else tune.gpu_timer
    return {"timer": timer, "on": str(visit.device), "tiny": visit.quick}


def _tile(entry: tune.Entry) -> Item:
    key = f"{entry.kind} {entry.kernel} {entry.rows}"
    return Item(key, partial(_measure_tile, entry), least=15, most=60)


def _measure_tile(entry: tune.Entry, visit: Visit) -> dict[str, Any]:
    tile = tune.tuned_tile(entry, _device(visit), **_how(visit))
    key = [entry.kernel, entry.kind, entry.rows]
    return {"entry": key, "tile": vars(tile), "told": str(tile)}


def _limits(kind: str, direction: str) -> Item:
    measure = partial(_measure_limits, kind, direction)
    return Item(f"{kind} {direction} crossovers", measure, least=20, most=90)


def _measure_limits(kind: str, direction: str, visit: Visit) -> dict[str, Any]:
    device = _device(visit)
    table = tune.with_limits(dispatch.table(), device, kind, direction, **_how(visit))
    paths = table["paths"][device][kind]
    names = (f"dual_{direction}", f"mlp_{direction}")
    limits = {name: paths[name] for name in names if name in paths}
    return {"kind": kind, "limits": limits, "told": str(limits)}


def write_table(content: dict[str, Any]) -> None:
    """Write a measured table to the file that the kernels read; not one of a dry run."""
    if content.get("table", {}).get("measured") and not content["quick"]:
        write(dispatch.TABLE, content["table"])
