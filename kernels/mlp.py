"""Launchers of the whole MLP, for small d and d_out.

    out = (g(x W_lᵀ + b_l) ∘ (x W_rᵀ + b_r)) W_pᵀ + b_p

h never leaves the chip and the backward recomputes L and R from x: x is all that is saved.
Conventions (dtypes, strides, `precision`, `gate`, `ready_…`) are those of `dual`.
"""

from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from torch import Tensor

from . import dispatch
from .launch import Start, arithmetic, launch
from .mlp_device import (
    mlp_backward_kernel,
    mlp_input_kernel,
    mlp_kernel,
    mlp_projection_kernel,
    mlp_weight_kernel,
)
from .partials import Sum, ready, split_rows
from .places import How, Place, is_wide, place, rows
from .tiles import Tile, blocks

# Names of the gradients `mlp_backward` can be asked for, and the keys of what it returns.
GRADIENTS = ("x", "weight", "bias", "w_p", "b_p")


def mlp_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    w_p: Tensor,
    b_p: Tensor | None,
    *,
    precision: str,
    config: Tile | None = None,
    gate: str = "identity",
) -> Tensor:
    """Return out (M, d_out).

    x (M, d_in); weight (2d, d_in); bias (2d,); w_p (d_out, d); b_p (d_out,).

    Right for every size; meant for d and d_out up to about 256 (L and R are formed anew for every
    256 columns of out).
    """
    how = How(x.dtype, x.device, precision, gate)
    run = ready_forward(place(x), place(weight), place(w_p), how, config)
    return run(x, weight, bias, w_p, b_p)


def mlp_backward(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    w_p: Tensor,
    *,
    precision: str,
    needs: Collection[str] = GRADIENTS,
    config: Mapping[str, Tile] | None = None,
    gate: str = "identity",
) -> dict[str, Tensor]:
    """Gradients of `mlp_forward` for dout (M, d_out): those named in `needs`, no work for others.

    Keys and shapes: x (M, d_in), weight (2d, d_in), bias (2d,), w_p (d_out, d), b_p (d_out,).
    "bias" and "b_p" may be asked for whether or not the layer has biases. Sums over M in two
    ordered stages: the same bits every run.
    """
    unknown = set(needs) - set(GRADIENTS)
    if unknown:
        raise ValueError(f"needs: expected names among {GRADIENTS}, got {sorted(unknown)}")
    how = How(x.dtype, x.device, precision, gate)
    wanted = tuple(name in needs for name in GRADIENTS)
    tiles = tuple((config or {}).items())
    run = ready_backward(place(dout), place(x), place(weight), place(w_p), how, wanted, tiles)
    found = zip(GRADIENTS, run(dout, x, weight, bias, w_p), strict=True)
    return {name: gradient for name, gradient in found if gradient is not None}


class _Layer(NamedTuple):
    """What the launches of a call follow from; `dout` is None for a forward."""

    dout: Place | None
    x: Place
    weight: Place
    w_p: Place
    how: How
    tiles: tuple[tuple[str, Tile], ...]

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """M, d, d_in, d_out."""
        (m, d_in), (d_out, d) = self.x[0], self.w_p[0]
        return m, d, d_in, d_out

    def tile(self, kernel: str) -> Tile:
        """The caller's, or the table's."""
        of = self.sizes[0], self.how.dtype, self.how.precision, self.how.device
        return dict(self.tiles).get(kernel) or dispatch.tile(kernel, *of)


@lru_cache(4096)
def ready_forward(
    x: Place, weight: Place, w_p: Place, how: How, config: Tile | None = None
) -> Callable[[Tensor, Tensor, Tensor | None, Tensor, Tensor | None], Tensor]:
    """`mlp_forward` of tensors of these places."""
    tiles = () if config is None else (("mlp_forward", config),)
    start = _start("mlp_forward", _Layer(None, x, weight, w_p, how, tiles))
    of_out = x[0][0], w_p[0][0]

    def run(
        x: Tensor, weight: Tensor, bias: Tensor | None, w_p: Tensor, b_p: Tensor | None
    ) -> Tensor:
        out = x.new_empty(of_out)
        bias = bias.contiguous() if bias is not None else None
        b_p = b_p.contiguous() if b_p is not None else None
        launch(mlp_kernel, start, (x, weight, bias, w_p, b_p, out))
        return out

    return run


@lru_cache(4096)
def ready_backward(
    dout: Place,
    x: Place,
    weight: Place,
    w_p: Place,
    how: How,
    needs: tuple[bool, ...],
    tiles: tuple[tuple[str, Tile], ...] = (),
) -> Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor], tuple[Tensor | None, ...]]:
    """`mlp_backward` of tensors of these places: all `GRADIENTS`, None where `needs` is false."""
    layer = _Layer(dout, x, weight, w_p, how, tiles)
    m, d, d_in, d_out = layer.sizes
    shapes = (m, d_in), (2 * d, d_in), (2 * d,), (d_out, d), (d_out,)
    if m == 0:
        return lambda dout, *rest: tuple(
            dout.new_zeros(shape) if need else None
            for shape, need in zip(shapes, needs, strict=True)
        )
    # A bias gradient comes with the weight's: dL and dR are at hand there.
    made = needs[0], needs[1] or needs[2], needs[2], needs[3]
    of_made = tuple(
        shape if is_made else None for shape, is_made in zip(shapes, made, strict=False)
    )
    parts = [_ready_part(layer, of_made, *part) for part in _parts(layer)]

    def run(
        dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, w_p: Tensor
    ) -> tuple[Tensor | None, ...]:
        bias = bias.contiguous() if bias is not None else None
        grads = [grad for part in parts for grad in part(dout, x, weight, bias, w_p)]
        if not needs[1]:
            grads[1] = None
        return *grads, dout.sum(0) if needs[4] else None

    return run


def _parts(layer: _Layer) -> list[tuple[Any, str, int, slice]]:
    """Kernel and name, how many of (dout, x, weight, bias, w_p) it takes, which gradients it gives.

    One kernel gives all where its tile covers all of d, d_in and d_out.
    """
    tile, (_, d, d_in, d_out) = layer.tile("mlp_backward"), layer.sizes
    if d <= tile.block_d and d_in <= tile.block_k and d_out <= tile.block_n:
        return [(mlp_backward_kernel, "mlp_backward", 5, slice(4))]
    return [
        (mlp_input_kernel, "mlp_backward_input", 5, slice(1)),
        (mlp_weight_kernel, "mlp_backward_weight", 5, slice(1, 3)),
        (mlp_projection_kernel, "mlp_backward_projection", 4, slice(3, 4)),
    ]


def _ready_part(
    layer: _Layer,
    shapes: tuple[tuple[int, ...] | None, ...],
    kernel: Any,
    name: str,
    takes: int,
    gives: slice,
) -> Callable[..., list[Tensor | None]]:
    """One of `_parts`; a gradient without a shape is not made."""
    if not any(shapes[gives]):
        return lambda *_: [None] * len(shapes[gives])
    start = _start(name, layer)
    # Each row of dx is one program's; the others are sums over rows, of which the programs that
    # the grid ends with form a share each.
    splits = (1, *[start.grid[-1]] * 3)
    sums = [
        None if shape is None else Sum(split, shape, layer.how.dtype)
        for split, shape in zip(splits[gives], shapes[gives], strict=True)
    ]
    return ready(kernel, start, takes, sums)


def _start(kernel: str, layer: _Layer) -> Start:
    """How one of the kernels starts; the grid of one that sums over rows ends with the shares."""
    (m, d, d_in, d_out), how = layer.sizes, layer.how
    most = max(d_in, d_out)
    columns, depth = {
        "mlp_forward": (d_out, d_in),
        "mlp_backward": (d_out, d_in),
        "mlp_backward_input": (d_in, most),
        "mlp_backward_weight": (d_in, most),
        "mlp_backward_projection": (d_out, d_in),
    }[kernel]
    tile = layer.tile(kernel).fit(d=d, n=columns, k=depth)
    numbers: tuple[int, ...] = (m, d, d_in, d_out)
    grid: tuple[int, ...] = (blocks(m, tile.block_m), blocks(columns, tile.block_n))
    if kernel not in ("mlp_forward", "mlp_backward_input"):
        is_one_pass = kernel == "mlp_backward"
        programs = 1 if is_one_pass else blocks(d, tile.block_d) * grid[1]
        splits, chunk = split_rows(m, programs, tile.block_m)
        grid = (splits,) if is_one_pass else (programs, splits)
        numbers = (*numbers, chunk)
    read = [place for place in (layer.dout, layer.x, layer.weight, layer.w_p) if place is not None]
    constants = {
        "BM": tile.block_m, "BD": tile.block_d, "BN": tile.block_n, "BK": tile.block_k,
        "WIDE": is_wide(*read, rows(m, most)), "GATE": how.gate,
        **arithmetic(how.dtype, how.precision),
    }  # fmt: skip
    if kernel != "mlp_backward":
        constants["EVEN_K"] = d_in % tile.block_k == 0
    if kernel == "mlp_backward_projection":
        del read[-1]
    strides = (stride for place in read for stride in place[1])
    return Start(grid, tile, (*numbers, *strides), constants)
