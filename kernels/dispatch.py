"""Which kernel and which tile a call takes, from one committed table, without a search at run time.

`table.json` holds, per class of device and per arithmetic, the tile of every kernel and the sizes
at which one kernel takes over from another. `python -m bilinear.kernels.tune` writes it anew on a
GPU; its "source" says how its figures were found.
"""

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .tiles import Tile

TABLE = Path(__file__).with_name("table.json")


class Detail(NamedTuple):
    """How one direction of a call runs: the kernel, its tile if any, and why, in words."""

    kernel: str
    tile: Tile | None
    reason: str


def choose(
    op: str,
    m: int,
    d_in: int,
    d: int,
    d_out: int | None,
    dtype: torch.dtype,
    device_capability: tuple[int, int],
    precision: str,
    saved: bool = False,
    gate: str = "identity",
) -> Detail:
    """The kernel of an op: "bilinear_forward" or "_backward", "mlp_forward" or "_backward".

    `saved`: whether a backward has [L, R] of its forward.

    Kernels of a forward: "mlp" is `mlp.mlp_forward`; "dual" is `dual.dual_forward`, then a library
    matmul with w_p for an mlp; "pointwise" is a library matmul with the packed weight, then
    `pointwise.product_forward`, then w_p likewise.
    Kernels of a backward: "mlp" is `mlp.mlp_backward`; "dual" recomputes with `dual.dual_backward`,
    or with [L, R] saved uses `dual.dual_backward_input` and `dual_backward_weight`; "pointwise" is
    a library matmul with w_p, `pointwise.product_backward` for [dL, dR] and h at once, and a
    library matmul each for dx and dweight. With another gate than the identity a "dual" that
    recomputes takes `tile_for_gate`; where that is a smaller tile, up to half the d_in.
    d_out is None for the bilinear ops.
    """
    family, _, direction = op.partition("_")
    if family not in ("bilinear", "mlp") or direction not in ("forward", "backward"):
        raise ValueError(
            "op: expected bilinear_forward, bilinear_backward, mlp_forward or mlp_backward, "
            f"got {op!r}"
        )
    if (d_out is None) != (family == "bilinear"):
        raise ValueError(f"d_out: expected {'None' if d_out else 'a size'} for {op}, got {d_out}")
    device, kind = device_class(device_capability), arithmetic_class(dtype, precision)
    limits = table()["paths"][device][kind]
    basis = f"{device}, {kind}; {table()['source']}"
    kernel = f"mlp_{direction}"
    if d_out is not None and not saved:
        most = limits[kernel]
        if d <= most["d"] and d_in <= most["d_in"] and d_out <= most["d_out"]:
            why = "d, d_in, d_out = {}, {}, {} are within {}, {}, {}".format(
                d, d_in, d_out, most["d"], most["d_in"], most["d_out"]
            )
            return Detail("mlp", tile_of_class(kernel, m, kind, device), f"{why} ({basis})")
    kernel = f"dual_{direction}"
    limit = kernel if direction == "forward" or saved else "dual_recompute"
    most_in = limits[limit]["d_in"]
    config = tile_of_class(kernel, m, kind, device)
    if kernel == "dual_backward" and not saved and tile_for_gate(config, gate) != config:
        most_in //= 2
        config = tile_for_gate(config, gate)
    if d_in <= most_in and not (saved and d_out is not None):
        why = f"d_in = {d_in} is within {most_in}"
        return Detail("dual", config, f"{why} ({basis})")
    why = f"d_in = {d_in} is above {most_in}: a library matmul carries the work"
    if saved and d_out is not None:
        why = "[dL, dR] and h are elementwise where [L, R] is saved"
    return Detail("pointwise", None, f"{why} ({basis})")


def tile(
    kernel: str, m: int, dtype: torch.dtype, precision: str, device: torch.device | None = None
) -> Tile:
    """Tile of one kernel for m rows on `device`; tensors elsewhere than on CUDA get sm_90's."""
    capability = (9, 0)
    if device is not None and device.type == "cuda":
        capability = _capability(device)
    return tile_of_class(kernel, m, arithmetic_class(dtype, precision), device_class(capability))


def tile_for_gate(tile: Tile, gate: str) -> Tile:
    """The tile of `dual_backward` with a gate: half the units where L and R fill the registers.

    g and g′ beside 128 accumulators a thread spilled 24 to 712 bytes; a smaller tile reads x more
    often, which takes 22 % more modelled cycles (`python -m bench.compile_report --gates`).
    """
    accumulators = 2 * tile.block_m * tile.block_d // (32 * max(tile.num_warps, 1))
    if gate == "identity" or accumulators < 128:
        return tile
    return replace(tile, block_d=tile.block_d // 2)


_capability = functools.cache(torch.cuda.get_device_capability)


def device_class(capability: tuple[int, int]) -> str:
    """ "sm_90" for data-centre devices from Hopper on, else "sm_80", whose tiles fit 99 KB."""
    return "sm_90" if capability[0] in (9, 10) else "sm_80"


def arithmetic_class(dtype: torch.dtype, precision: str) -> str:
    """ "half", "float64", or for float32 the precision its products are formed in."""
    if dtype in (torch.bfloat16, torch.float16):
        return "half"
    if dtype == torch.float64:
        return "float64"
    if dtype == torch.float32:
        return precision
    raise TypeError(f"dtype: expected bfloat16, float16, float32 or float64, got {dtype}")


@functools.cache
def table() -> dict[str, Any]:
    """The committed table."""
    loaded: dict[str, Any] = json.loads(TABLE.read_text())
    return loaded


def tile_of_class(kernel: str, m: int, kind: str, device: str) -> Tile:
    """Tile of one kernel for m rows, by classes of arithmetic and of device."""
    return _tile(kernel, "small" if m <= table()["small_m"] else "large", kind, device)


@functools.cache
def _tile(kernel: str, rows: str, kind: str, device: str) -> Tile:
    return Tile(**table()["tiles"][device][kind][kernel][rows])
