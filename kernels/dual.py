"""Launchers of the dual matmul: one pass over x feeds the left and the right product.

Tensors in, tensors out. All floating tensors of one call share one dtype and one device; x and
gradients may have any strides (zero strides of `expand` too), weights as well; what is returned is
contiguous. `precision` ("ieee" | "tf32" | "tf32x3") is how float32 products are formed; other
dtypes ignore it (bfloat16 and float16 accumulate in float32, float64 in float64). `gate` names g.
"""

from functools import lru_cache

import torch
from torch import Tensor

from . import dispatch
from .dual_device import dual_input_kernel, dual_kernel, dual_weight_kernel
from .launch import Place, Start, arithmetic, is_wide, launch, rows
from .partials import add_shares, shares, split_rows
from .tiles import Tile, blocks


def dual_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    precision: str,
    config: Tile | None = None,
    save_preact: bool = False,
    gate: str = "identity",
) -> tuple[Tensor, Tensor | None]:
    """h = g(x W_lᵀ + b_l) ∘ (x W_rᵀ + b_r), (M, d); and [L, R], (M, 2d), if it is to be saved.

    x (M, d_in); weight (2d, d_in), left half first; bias (2d,) or None.
    """
    m, d = x.shape[0], weight.shape[0] // 2
    h = x.new_empty(m, d)
    preact = x.new_empty(m, 2 * d) if save_preact else None
    _launch_dual(x, weight, bias, None, h, preact, precision, config, gate)
    return h, preact


def dual_backward(
    dh: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    precision: str,
    config: Tile | None = None,
    with_h: bool = False,
    gate: str = "identity",
) -> tuple[Tensor, Tensor | None]:
    """dpreact = [dL, dR], (M, 2d), with L and R recomputed from x; `with_h` adds h (M, d).

    dh (M, d). With L and R at hand use `pointwise.product_backward` instead. Then
    dx = dpreact @ weight, dweight = dpreactᵀ @ x, dbias = dpreact.sum(0), and dW_p = doutᵀ @ h.
    """
    m, d = dh.shape
    dpreact = x.new_empty(m, 2 * d)
    h = x.new_empty(m, d) if with_h else None
    _launch_dual(x, weight, bias, dh, h, dpreact, precision, config, gate)
    return dpreact, h


def dual_backward_input(
    dh: Tensor,
    preact: Tensor,
    weight: Tensor,
    *,
    precision: str,
    config: Tile | None = None,
    gate: str = "identity",
) -> Tensor:
    """dx = dL W_l + dR W_r, (M, d_in); dL and dR never reach memory.

    dh (M, d); preact (M, 2d) as `dual_forward(save_preact=True)` gives it; weight (2d, d_in).
    """
    dx = dh.new_empty(dh.shape[0], weight.shape[1])
    if dh.shape[0] == 0:
        return dx
    start = _gradient_start(
        "dual_backward_input", dh.shape, dh.stride(), preact.stride(), weight.shape,
        weight.stride(), dh.dtype, dh.device, precision, config, gate,
    )  # fmt: skip
    launch(dual_input_kernel, start, (dh, preact, weight, dx))
    return dx


def dual_backward_weight(
    dh: Tensor,
    preact: Tensor,
    x: Tensor,
    *,
    precision: str,
    bias: bool,
    config: Tile | None = None,
    gate: str = "identity",
) -> tuple[Tensor, Tensor | None]:
    """dweight = [dLᵀ x; dRᵀ x], (2d, d_in), and with `bias` dbias (2d,).

    dL and dR never reach memory. Sums over M in two ordered stages: the same bits every run.
    """
    m, d = dh.shape
    d_in = x.shape[1]
    if m == 0:
        empty_sum = x.new_zeros((2 * d, d_in))
        return empty_sum, x.new_zeros((2 * d,)) if bias else None
    start = _gradient_start(
        "dual_backward_weight", dh.shape, dh.stride(), preact.stride(), x.shape, x.stride(),
        dh.dtype, dh.device, precision, config, gate,
    )  # fmt: skip
    splits = start.grid[1]
    partial = shares(splits, (2 * d, d_in), x)
    bias_partial = shares(splits, (2 * d,), x) if bias else None
    launch(dual_weight_kernel, start, (dh, preact, x, partial, bias_partial))
    dbias = add_shares(bias_partial, x.dtype) if bias_partial is not None else None
    return add_shares(partial, x.dtype), dbias


def _launch_dual(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dh: Tensor | None,
    h: Tensor | None,
    preact: Tensor | None,
    precision: str,
    config: Tile | None,
    gate: str,
) -> None:
    if x.shape[0] == 0:
        return
    of_dh = None if dh is None else (dh.shape, dh.stride())
    start = _start(
        x.shape, x.stride(), weight.shape, weight.stride(), of_dh, x.dtype, x.device,
        precision, config, gate,
    )  # fmt: skip
    bias = bias.contiguous() if bias is not None else None
    launch(dual_kernel, start, (x, weight, bias, dh, h, preact))


@lru_cache(4096)
def _start(
    x: torch.Size,
    x_strides: tuple[int, ...],
    weight: torch.Size,
    weight_strides: tuple[int, ...],
    dh: Place,
    dtype: torch.dtype,
    device: torch.device,
    precision: str,
    config: Tile | None,
    gate: str,
) -> Start:
    """How `dual_kernel` starts for tensors of these shapes and strides."""
    (m, d_in), d = x, weight[0] // 2
    name = "dual_forward" if dh is None else "dual_backward"
    tile = config or dispatch.tile(name, m, dtype, precision, device)
    if config is None and dh is not None:
        tile = dispatch.tile_for_gate(tile, gate)
    tile = tile.fit(d=d, k=d_in)
    numbers = (m, d, d_in, *x_strides, *weight_strides, *(dh[1] if dh else (0, 0)))
    wide = is_wide((x, x_strides), (weight, weight_strides), dh, rows(m, 2 * d))
    constants = {
        "BM": tile.block_m, "BD": tile.block_d, "BK": tile.block_k,
        "EVEN_K": d_in % tile.block_k == 0, "WIDE": wide, "GATE": gate,
    }  # fmt: skip
    grid = (blocks(m, tile.block_m) * blocks(d, tile.block_d),)
    return Start(grid, tile, numbers, constants | arithmetic(dtype, precision))


@lru_cache(4096)
def _gradient_start(
    name: str,
    dh: torch.Size,
    dh_strides: tuple[int, ...],
    preact_strides: tuple[int, ...],
    other: torch.Size,
    other_strides: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    precision: str,
    config: Tile | None,
    gate: str,
) -> Start:
    """How a kernel that reads dh, preact and one `other`, weight or x, starts."""
    (m, d), d_in = dh, other[1]
    tile = config or dispatch.tile(name, m, dtype, precision, device)
    tile = tile.fit(d=d, n=d_in)
    grid: tuple[int, ...]
    numbers: tuple[int, ...]
    if name == "dual_backward_input":
        grid = (blocks(m, tile.block_m) * blocks(d_in, tile.block_n),)
        numbers, written = (m, d, d_in), rows(m, d_in)
    else:
        programs = blocks(d, tile.block_d) * blocks(d_in, tile.block_n)
        splits, chunk = split_rows(m, programs, tile.block_m)
        grid, written = (programs, splits), rows(splits * 2 * d, d_in)
        numbers = (m, d, d_in, chunk)
    places: tuple[Place, ...] = (
        (dh, dh_strides), ((m, 2 * d), preact_strides), (other, other_strides), written,
    )  # fmt: skip
    constants = {
        "BM": tile.block_m, "BD": tile.block_d, "BN": tile.block_n,
        "WIDE": is_wide(*places), "GATE": gate,
    }  # fmt: skip
    strides = (*dh_strides, *preact_strides, *other_strides)
    return Start(grid, tile, (*numbers, *strides), constants | arithmetic(dtype, precision))
