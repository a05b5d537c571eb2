"""Tiles and crossovers of the dispatch table, measured; the table is written after each."""

from typing import Any

import torch

from bench.measure.clock import call_seconds
from bench.visit.items import Item, Visit, write
from bilinear.kernels import dispatch, tune

_KINDS = ("half", "tf32", "ieee")
_FEW = 3  # kernels of a dry run


def items(visit: Visit) -> list[Item]:
    """Tiles for many rows in 16 bits and their crossovers, then tf32's, then what is left."""
    large = [entry for entry in tune.entries(_KINDS) if entry.rows == "large"]
    small = [entry for entry in tune.entries(_KINDS) if entry.rows == "small"]
    if visit.quick:
        # The interpreter's 16-bit product is wrong, and its float32 product ignores the precision.
        entries = [entry for entry in large if entry.kind == "ieee"][:_FEW]
        return [*(_tile(entry) for entry in entries), _limits("ieee", "forward")]
    found = []
    for kind in _KINDS:
        found += [_tile(entry) for entry in large if entry.kind == kind]
        found += [_limits(kind, direction) for direction in ("forward", "backward", "recompute")]
    return found + [_tile(entry) for entry in small]


def finish(content: dict[str, Any], visit: Visit) -> None:
    """Add the dispatch table that follows from the items done so far."""
    content["table"] = made(content, visit)


def made(content: dict[str, Any], visit: Visit) -> dict[str, Any]:
    """The committed table with every measured tile and limit."""
    device, table = _device(visit), dispatch.table()
    measured = []
    for key, found in content["items"].items():
        if "tile" in found:
            table = tune.with_tile(
                table, device, tune.Entry(*found["entry"]), dispatch.Tile(**found["tile"])
            )
        elif "limits" in found:
            kind, names = found["kind"], found["limits"]
            table = {**table, "paths": _with(table["paths"], device, kind, names)}
        else:
            continue
        measured.append(key)
    if not measured:
        return table
    name = torch.cuda.get_device_name() if visit.device.type == "cuda" else "a dry run"
    return tune.signed(table, device, measured, name)


def _with(paths: dict, device: str, kind: str, limits: dict) -> dict:
    changed = paths[device] | {kind: paths[device][kind] | limits}
    return paths | {device: changed}


def _device(visit: Visit) -> str:
    if visit.device.type != "cuda":
        return "sm_90"
    return dispatch.device_class(torch.cuda.get_device_capability())


def _timer(visit: Visit) -> tune.Timer:
    return call_seconds if visit.quick else tune.gpu_timer


def _where(visit: Visit) -> dict[str, Any]:
    return {"on": str(visit.device), "tiny": visit.quick}


def _tile(entry: tune.Entry) -> Item:
    def tuned(visit: Visit) -> dict[str, Any]:
        tile = tune.tuned_tile(entry, _device(visit), _timer(visit), **_where(visit))
        return {
            "entry": [entry.kernel, entry.kind, entry.rows],
            "tile": vars(tile), "told": str(tile),
        }  # fmt: skip

    return Item(f"{entry.kind} {entry.kernel} {entry.rows}", tuned, least=15, most=60)


def _limits(kind: str, direction: str) -> Item:
    def measured(visit: Visit) -> dict[str, Any]:
        table = tune.with_limits(
            dispatch.table(), _device(visit), kind, direction, _timer(visit), **_where(visit)
        )
        paths = table["paths"][_device(visit)][kind]
        names = (f"dual_{direction}", f"mlp_{direction}")
        limits = {name: paths[name] for name in names if name in paths}
        return {"kind": kind, "limits": limits, "told": str(limits)}

    return Item(f"{kind} {direction} crossovers", measured, least=20, most=90)


def adopt(content: dict[str, Any]) -> None:
    """Write the measured table where the kernels read it."""
    if content.get("table", {}).get("measured") and not content["quick"]:
        write(dispatch.TABLE, content["table"])
