"""The elementwise kernels that stand beside a library matmul over the packed weight.

    h = L ∘ R     dL = dh ∘ R     dR = dh ∘ L

A pair (M, 2d) is [L, R] or [dL, dR], left half first. Products are formed in float32 (float64 for
float64) and rounded once.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import is_wide, launch
from .products import widen
from .tiles import Tile, blocks

# Bound by memory: one program moves 16 KB a tensor of bfloat16 whatever the device.
_BLOCK = 4096
_BLOCK_D = 1024
_RUN = Tile(block_m=0, num_warps=4, num_stages=1)


def product_forward(lr: Tensor) -> Tensor:
    """h = L ∘ R, (M, d), of lr = [L, R], (M, 2d); any strides."""
    m, d = lr.shape[0], lr.shape[1] // 2
    h = torch.empty((m, d), dtype=lr.dtype, device=lr.device)
    _launch(lr, None, h, None)
    return h


def product_backward(
    dh: Tensor, lr: Tensor, *, with_h: bool = False
) -> tuple[Tensor, Tensor | None]:
    """dlr = [dh ∘ R, dh ∘ L], (M, 2d), of dh (M, d) and lr (M, 2d); `with_h` adds h (M, d)."""
    dlr = torch.empty(lr.shape, dtype=lr.dtype, device=lr.device)
    h = torch.empty(dh.shape, dtype=lr.dtype, device=lr.device) if with_h else None
    _launch(lr, dh, h, dlr)
    return dlr, h


def _launch(lr: Tensor, dh: Tensor | None, h: Tensor | None, dlr: Tensor | None) -> None:
    m, d = lr.shape[0], lr.shape[1] // 2
    if m == 0:
        return
    block_d = min(_BLOCK_D, triton.next_power_of_2(d))
    block_m = _BLOCK // block_d
    grid = (blocks(m, block_m) * blocks(d, block_d),)
    strides = (*lr.stride(), *(dh.stride() if dh is not None else (0, 0)))
    wide = is_wide(lr, dh, dlr)
    args = (lr, dh, h, dlr, m, d, *strides)
    launch(product_kernel, grid, args, _RUN, BM=block_m, BD=block_d, WIDE=wide)


@triton.jit
def product_kernel(
    lr_ptr,
    dh_ptr,
    h_ptr,
    dlr_ptr,
    m,
    d,
    stride_lm,
    stride_ln,
    stride_gm,
    stride_gn,
    BM: tl.constexpr,
    BD: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One (BM, BD) tile of L, R and, for gradients, dh.

    Writes h if h_ptr, [dL, dR] if dlr_ptr.
    """
    n_d = tl.cdiv(d, BD)
    rows = (tl.program_id(0) // n_d * BM + tl.arange(0, BM))[:, None]
    units = (tl.program_id(0) % n_d * BD + tl.arange(0, BD))[None, :]
    inside = (rows < m) & (units < d)
    ln, width = widen(stride_ln, WIDE), widen(d, WIDE)
    l_at = lr_ptr + rows * widen(stride_lm, WIDE) + units * ln
    left = tl.load(l_at, mask=inside)
    right = tl.load(l_at + d * ln, mask=inside)
    if lr_ptr.dtype.element_ty != tl.float64:
        left, right = left.to(tl.float32), right.to(tl.float32)
    if h_ptr is not None:
        tl.store(h_ptr + rows * width + units, left * right, mask=inside)
    if dlr_ptr is not None:
        dh_at = dh_ptr + rows * widen(stride_gm, WIDE) + units * widen(stride_gn, WIDE)
        dh = tl.load(dh_at, mask=inside).to(left.dtype)
        dlr_at = dlr_ptr + rows * (2 * width) + units
        tl.store(dlr_at, dh * right, mask=inside)
        tl.store(dlr_at + d, dh * left, mask=inside)
