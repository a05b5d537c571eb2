"""Launchers of the dual matmul: one pass over x feeds the left and the right product.

Tensors in, tensors out. All floating tensors of one call share one dtype and one device; x and
gradients may have any strides (zero strides of `expand` too), weights as well; what is returned is
contiguous. `precision` ("ieee" | "tf32" | "tf32x3") is how float32 products are formed; other
dtypes ignore it (bfloat16 and float16 accumulate in float32, float64 in float64). `gate` names g.
"""

import torch
from torch import Tensor

from . import dispatch
from .dual_device import dual_input_kernel, dual_kernel, dual_weight_kernel
from .launch import arithmetic, is_wide, launch
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
    h = torch.empty((m, d), dtype=x.dtype, device=x.device)
    preact = torch.empty((m, 2 * d), dtype=x.dtype, device=x.device) if save_preact else None
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
    dpreact = torch.empty((m, 2 * d), dtype=x.dtype, device=x.device)
    h = torch.empty((m, d), dtype=x.dtype, device=x.device) if with_h else None
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
    m, d = dh.shape
    d_in = weight.shape[1]
    dx = torch.empty((m, d_in), dtype=dh.dtype, device=dh.device)
    if m == 0:
        return dx
    tile = config or dispatch.tile("dual_backward_input", m, dh.dtype, precision, dh.device)
    tile = tile.fit(d=d, n=d_in)
    grid = (blocks(m, tile.block_m) * blocks(d_in, tile.block_n),)
    args = (dh, preact, weight, dx, m, d, d_in, *dh.stride(), *preact.stride(), *weight.stride())
    launch(
        dual_input_kernel, grid, args, tile,
        BM=tile.block_m, BN=tile.block_n, BD=tile.block_d,
        WIDE=is_wide(dh, preact, weight, dx), GATE=gate, **arithmetic(dh.dtype, precision),
    )  # fmt: skip
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
    tile = config or dispatch.tile("dual_backward_weight", m, dh.dtype, precision, dh.device)
    tile = tile.fit(d=d, n=d_in)
    programs = blocks(d, tile.block_d) * blocks(d_in, tile.block_n)
    splits, chunk = split_rows(m, programs, tile.block_m)
    partial = shares(splits, (2 * d, d_in), x)
    bias_partial = shares(splits, (2 * d,), x) if bias else None
    args = (
        dh, preact, x, partial, bias_partial, m, d, d_in, chunk,
        *dh.stride(), *preact.stride(), *x.stride(),
    )  # fmt: skip
    launch(
        dual_weight_kernel, (programs, splits), args, tile,
        BM=tile.block_m, BD=tile.block_d, BN=tile.block_n,
        WIDE=is_wide(dh, preact, x, partial), GATE=gate, **arithmetic(dh.dtype, precision),
    )  # fmt: skip
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
    m, d_in = x.shape
    d = weight.shape[0] // 2
    if m == 0:
        return
    name = "dual_forward" if dh is None else "dual_backward"
    tile = config or dispatch.tile(name, m, x.dtype, precision, x.device)
    if config is None and dh is not None:
        tile = dispatch.tile_for_gate(tile, gate)
    tile = tile.fit(d=d, k=d_in)
    grid = (blocks(m, tile.block_m) * blocks(d, tile.block_d),)
    bias = bias.contiguous() if bias is not None else None
    strides = (*x.stride(), *weight.stride(), *(dh.stride() if dh is not None else (0, 0)))
    args = (x, weight, bias, dh, h, preact, m, d, d_in, *strides)
    launch(
        dual_kernel, grid, args, tile,
        BM=tile.block_m, BD=tile.block_d, BK=tile.block_k, EVEN_K=d_in % tile.block_k == 0,
        WIDE=is_wide(x, weight, dh, h, preact), GATE=gate, **arithmetic(x.dtype, precision),
    )  # fmt: skip
