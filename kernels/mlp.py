"""Launchers of the whole MLP, for small d and d_out.

    out = (g(x W_lᵀ + b_l) ∘ (x W_rᵀ + b_r)) W_pᵀ + b_p

h never leaves the chip and the backward recomputes L and R from x: x is all that is saved.
Conventions (dtypes, strides, `precision`, `gate`) are those of `dual`.
"""

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from . import dispatch
from .launch import Place, Start, arithmetic, is_wide, launch, rows
from .mlp_device import (
    mlp_backward_kernel,
    mlp_input_kernel,
    mlp_kernel,
    mlp_projection_kernel,
    mlp_weight_kernel,
)
from .partials import add_shares, shares, split_rows
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
    out = x.new_empty(x.shape[0], w_p.shape[0])
    if x.shape[0] == 0:
        return out
    start = _start("mlp_forward", _described(None, x, weight, w_p, precision, gate), config)
    bias = bias.contiguous() if bias is not None else None
    b_p = b_p.contiguous() if b_p is not None else None
    launch(mlp_kernel, start, (x, weight, bias, w_p, b_p, out))
    return out


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
    if x.shape[0] == 0:
        return {name: _zeros(name, x, w_p) for name in needs}
    call = _Backward(
        _described(dout, x, weight, w_p, precision, gate), dout, x, weight,
        bias.contiguous() if bias is not None else None, w_p, config or {},
    )  # fmt: skip
    wanted = set(needs) - {"b_p"}
    one_pass = _fits_one_pass(call.of, call.config.get("mlp_backward"))
    grads = call.in_one_pass(wanted) if one_pass else call.by_gradient(wanted)
    if "b_p" in needs:
        grads["b_p"] = dout.sum(0)
    return {name: grads[name] for name in needs}


class _Described(NamedTuple):
    """All of a call but its tensors: what its launches follow from. Strides of none are empty."""

    m: int
    d: int
    d_in: int
    d_out: int
    dout: tuple[int, ...]
    x: tuple[int, ...]
    weight: tuple[int, ...]
    w_p: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    precision: str
    gate: str


def _described(
    dout: Tensor | None, x: Tensor, weight: Tensor, w_p: Tensor, precision: str, gate: str
) -> _Described:
    (m, d_in), (d_out, d) = x.shape, w_p.shape
    return _Described(
        m, d, d_in, d_out, () if dout is None else dout.stride(), x.stride(), weight.stride(),
        w_p.stride(), x.dtype, x.device, precision, gate,
    )  # fmt: skip


@lru_cache(4096)
def _fits_one_pass(of: _Described, config: Tile | None) -> bool:
    """Whether one program's tile covers all of d, d_in and d_out."""
    tile = config or dispatch.tile("mlp_backward", of.m, of.dtype, of.precision, of.device)
    return of.d <= tile.block_d and of.d_in <= tile.block_k and of.d_out <= tile.block_n


@lru_cache(4096)
def _start(kernel: str, of: _Described, config: Tile | None) -> Start:
    """How one of the kernels starts; the grid of one that sums over rows ends with the shares."""
    m, d, d_in, d_out = of[:4]
    tile = config or dispatch.tile(kernel, m, of.dtype, of.precision, of.device)
    most = max(d_in, d_out)
    columns, depth = {
        "mlp_forward": (d_out, d_in),
        "mlp_backward": (d_out, d_in),
        "mlp_backward_input": (d_in, most),
        "mlp_backward_weight": (d_in, most),
        "mlp_backward_projection": (d_out, d_in),
    }[kernel]
    tile = tile.fit(d=d, n=columns, k=depth)
    numbers: tuple[int, ...] = (m, d, d_in, d_out)
    grid: tuple[int, ...] = (blocks(m, tile.block_m), blocks(columns, tile.block_n))
    if kernel not in ("mlp_forward", "mlp_backward_input"):
        is_one_pass = kernel == "mlp_backward"
        tiles = 1 if is_one_pass else blocks(d, tile.block_d) * grid[1]
        splits, chunk = split_rows(m, tiles, tile.block_m)
        grid = (splits,) if is_one_pass else (tiles, splits)
        numbers = (*numbers, chunk)
    strides = (*of.dout, *of.x, *of.weight)
    strides += () if kernel == "mlp_backward_projection" else of.w_p
    places: tuple[Place, ...] = (
        ((m, d_out), of.dout) if of.dout else None, ((m, d_in), of.x),
        ((2 * d, d_in), of.weight), ((d_out, d), of.w_p), rows(m, max(d_in, d_out)),
    )  # fmt: skip
    constants = {
        "BM": tile.block_m, "BD": tile.block_d, "BN": tile.block_n, "BK": tile.block_k,
        "WIDE": is_wide(*places), "GATE": of.gate, **arithmetic(of.dtype, of.precision),
    }  # fmt: skip
    if kernel != "mlp_backward":
        constants["EVEN_K"] = d_in % tile.block_k == 0
    return Start(grid, tile, (*numbers, *strides), constants)


class _Backward(NamedTuple):
    """The tensors of one backward call; its methods launch the kernels."""

    of: _Described
    dout: Tensor
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    w_p: Tensor
    config: Mapping[str, Tile]

    def start(self, kernel: str) -> Start:
        """How one kernel starts, on the caller's tile or the table's."""
        return _start(kernel, self.of, self.config.get(kernel))

    def in_one_pass(self, wanted: set[str]) -> dict[str, Tensor]:
        """Gradients named in `wanted` from `mlp_backward_kernel`."""
        if not wanted:
            return {}
        m, d, d_in, d_out = self.of[:4]
        start, x = self.start("mlp_backward"), self.x
        (splits,) = start.grid
        dx = x.new_empty(m, d_in) if "x" in wanted else None
        sums = {}
        # A bias gradient comes with the weight's: dL and dR are at hand there.
        if "weight" in wanted or "bias" in wanted:
            sums["weight"] = shares(splits, (2 * d, d_in), x)
        if "bias" in wanted:
            sums["bias"] = shares(splits, (2 * d,), x)
        if "w_p" in wanted:
            sums["w_p"] = shares(splits, (d_out, d), x)
        launch(
            mlp_backward_kernel, start,
            (self.dout, x, self.weight, self.bias, self.w_p, dx,
             sums.get("weight"), sums.get("bias"), sums.get("w_p")),
        )  # fmt: skip
        grads = {name: add_shares(sums[name], x.dtype) for name in sums if name in wanted}
        return grads if dx is None else grads | {"x": dx}

    def by_gradient(self, wanted: set[str]) -> dict[str, Tensor]:
        """Gradients named in `wanted`: a kernel for dx, one for dweight and dbias, one for dW_p."""
        grads = {}
        if "x" in wanted:
            grads["x"] = self._input()
        if wanted & {"weight", "bias"}:
            grads |= self._weight("bias" in wanted)
        if "w_p" in wanted:
            grads["w_p"] = self._projection()
        return grads

    def _input(self) -> Tensor:
        dx = self.x.new_empty(self.of.m, self.of.d_in)
        tensors = (self.dout, self.x, self.weight, self.bias, self.w_p, dx)
        launch(mlp_input_kernel, self.start("mlp_backward_input"), tensors)
        return dx

    def _weight(self, with_bias: bool) -> dict[str, Tensor]:
        start, d = self.start("mlp_backward_weight"), self.of.d
        partial = shares(start.grid[1], (2 * d, self.of.d_in), self.x)
        bias_partial = shares(start.grid[1], (2 * d,), self.x) if with_bias else None
        launch(
            mlp_weight_kernel, start,
            (self.dout, self.x, self.weight, self.bias, self.w_p, partial, bias_partial),
        )  # fmt: skip
        grads = {"weight": add_shares(partial, self.x.dtype)}
        if bias_partial is not None:
            grads["bias"] = add_shares(bias_partial, self.x.dtype)
        return grads

    def _projection(self) -> Tensor:
        start = self.start("mlp_backward_projection")
        partial = shares(start.grid[1], (self.of.d_out, self.of.d), self.x)
        launch(mlp_projection_kernel, start, (self.dout, self.x, self.weight, self.bias, partial))
        return add_shares(partial, self.x.dtype)


def _zeros(name: str, x: Tensor, w_p: Tensor) -> Tensor:
    (d_out, d), d_in = w_p.shape, x.shape[1]
    shape = {"x": (0, d_in), "weight": (2 * d, d_in), "bias": (2 * d,), "w_p": (d_out, d)}
    return x.new_zeros(shape.get(name, (d_out,)))
