"""Launchers of the whole MLP, for small d and d_out.

    out = (g(x W_lᵀ + b_l) ∘ (x W_rᵀ + b_r)) W_pᵀ + b_p

h never leaves the chip and the backward recomputes L and R from x: x is all that is saved.
Conventions (dtypes, strides, `precision`, `gate`) are those of `dual`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import dispatch
from .launch import arithmetic, is_wide, launch
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
    (m, d_in), (d_out, d) = x.shape, w_p.shape
    out = torch.empty((m, d_out), dtype=x.dtype, device=x.device)
    if m == 0:
        return out
    tile = config or dispatch.tile("mlp_forward", m, x.dtype, precision, x.device)
    tile = tile.fit(d=d, n=d_out, k=d_in)
    grid = (blocks(m, tile.block_m), blocks(d_out, tile.block_n))
    bias = bias.contiguous() if bias is not None else None
    b_p = b_p.contiguous() if b_p is not None else None
    strides = (*x.stride(), *weight.stride(), *w_p.stride())
    args = (x, weight, bias, w_p, b_p, out, m, d, d_in, d_out, *strides)
    launch(
        mlp_kernel, grid, args, tile,
        **_blocks(tile, d_in), WIDE=is_wide(x, weight, w_p, out), GATE=gate,
        **arithmetic(x.dtype, precision),
    )  # fmt: skip
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
    call = _Backward(
        dout, x, weight, bias.contiguous() if bias is not None else None, w_p, precision,
        dict(config or {}), gate,
    )  # fmt: skip
    if x.shape[0] == 0:
        return {name: _zeros(name, call) for name in needs}
    wanted = set(needs) - {"b_p"}
    grads = call.in_one_pass(wanted) if call.fits_one_pass() else call.by_gradient(wanted)
    if "b_p" in needs:
        grads["b_p"] = dout.sum(0)
    return {name: grads[name] for name in needs}


@dataclass(frozen=True)
class _Backward:
    """The tensors of one backward call; its methods launch the kernels."""

    dout: Tensor
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    w_p: Tensor
    precision: str
    config: dict[str, Tile]
    gate: str

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """(m, d, d_in, d_out), the order the kernels take them in."""
        return self.x.shape[0], self.w_p.shape[1], self.x.shape[1], self.w_p.shape[0]

    def tile(self, name: str) -> Tile:
        """The tile of one kernel: the caller's, or the table's."""
        found = self.config.get(name)
        return found or dispatch.tile(
            name, self.x.shape[0], self.x.dtype, self.precision, self.x.device
        )

    def fits_one_pass(self) -> bool:
        """Whether one program's tile covers all of d, d_in and d_out."""
        _, d, d_in, d_out = self.sizes
        tile = self.tile("mlp_backward")
        return d <= tile.block_d and d_in <= tile.block_k and d_out <= tile.block_n

    def in_one_pass(self, wanted: set[str]) -> dict[str, Tensor]:
        """Gradients named in `wanted` from `mlp_backward_kernel`."""
        if not wanted:
            return {}
        m, d, d_in, d_out = self.sizes
        tile = self.tile("mlp_backward").fit(d=d, n=d_out, k=d_in)
        splits, chunk = split_rows(m, 1, tile.block_m)
        dx = torch.empty((m, d_in), dtype=self.x.dtype, device=self.x.device)
        sums = {
            "weight": shares(splits, (2 * d, d_in), self.x),
            "bias": shares(splits, (2 * d,), self.x),
            "w_p": shares(splits, (d_out, d), self.x),
        }
        # A bias gradient comes with the weight's: dL and dR are at hand there.
        with_weight = bool(wanted & {"weight", "bias"})
        args = (
            self.dout, self.x, self.weight, self.bias, self.w_p,
            dx if "x" in wanted else None,
            sums["weight"] if with_weight else None,
            sums["bias"] if "bias" in wanted else None,
            sums["w_p"] if "w_p" in wanted else None,
            m, d, d_in, d_out, chunk, *self._strides(), *self.w_p.stride(),
        )  # fmt: skip
        launch(
            mlp_backward_kernel, (splits,), args, tile,
            BM=tile.block_m, BD=tile.block_d, BK=tile.block_k, BN=tile.block_n,
            WIDE=is_wide(self.dout, self.x, self.weight, self.w_p, dx), GATE=self.gate,
            **arithmetic(self.x.dtype, self.precision),
        )  # fmt: skip
        grads = {k: add_shares(v, self.x.dtype) for k, v in sums.items() if k in wanted}
        return grads | ({"x": dx} if "x" in wanted else {})

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
        m, d, d_in, d_out = self.sizes
        tile = self.tile("mlp_backward_input").fit(d=d, n=d_in, k=max(d_in, d_out))
        dx = torch.empty((m, d_in), dtype=self.x.dtype, device=self.x.device)
        args = (
            self.dout, self.x, self.weight, self.bias, self.w_p, dx, *self.sizes,
            *self._strides(), *self.w_p.stride(),
        )  # fmt: skip
        grid = (blocks(m, tile.block_m), blocks(d_in, tile.block_n))
        self._launch(mlp_input_kernel, grid, args, tile)
        return dx

    def _weight(self, with_bias: bool) -> dict[str, Tensor]:
        m, d, d_in, d_out = self.sizes
        tile = self.tile("mlp_backward_weight").fit(d=d, n=d_in, k=max(d_in, d_out))
        programs = blocks(d, tile.block_d) * blocks(d_in, tile.block_n)
        splits, chunk = split_rows(m, programs, tile.block_m)
        partial = shares(splits, (2 * d, d_in), self.x)
        bias_partial = shares(splits, (2 * d,), self.x) if with_bias else None
        args = (
            self.dout, self.x, self.weight, self.bias, self.w_p, partial, bias_partial,
            *self.sizes, chunk, *self._strides(), *self.w_p.stride(),
        )  # fmt: skip
        self._launch(mlp_weight_kernel, (programs, splits), args, tile)
        grads = {"weight": add_shares(partial, self.x.dtype)}
        if bias_partial is not None:
            grads["bias"] = add_shares(bias_partial, self.x.dtype)
        return grads

    def _projection(self) -> Tensor:
        m, d, d_in, d_out = self.sizes
        tile = self.tile("mlp_backward_projection").fit(d=d, n=d_out, k=d_in)
        programs = blocks(d, tile.block_d) * blocks(d_out, tile.block_n)
        splits, chunk = split_rows(m, programs, tile.block_m)
        partial = shares(splits, (d_out, d), self.x)
        args = (
            self.dout, self.x, self.weight, self.bias, partial,
            *self.sizes, chunk, *self._strides(),
        )  # fmt: skip
        self._launch(mlp_projection_kernel, (programs, splits), args, tile)
        return add_shares(partial, self.x.dtype)

    def _strides(self) -> tuple[int, ...]:
        return (*self.dout.stride(), *self.x.stride(), *self.weight.stride())

    def _launch(
        self, kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], tile: Tile
    ) -> None:
        wide = is_wide(self.dout, self.x, self.weight, self.w_p) or self.x.numel() >= 2**31
        launch(
            kernel, grid, args, tile,
            **_blocks(tile, self.x.shape[1]), WIDE=wide, GATE=self.gate,
            **arithmetic(self.x.dtype, self.precision),
        )  # fmt: skip


def _blocks(tile: Tile, d_in: int) -> dict[str, Any]:
    return {
        "BM": tile.block_m,
        "BD": tile.block_d,
        "BN": tile.block_n,
        "BK": tile.block_k,
        "EVEN_K": d_in % tile.block_k == 0,
    }


def _zeros(name: str, call: _Backward) -> Tensor:
    m, d, d_in, d_out = call.sizes
    shape = {"x": (m, d_in), "weight": (2 * d, d_in), "bias": (2 * d,), "w_p": (d_out, d)}
    return call.x.new_zeros(shape.get(name, (d_out,)))
