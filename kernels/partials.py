"""Sums over rows in two ordered stages: which rows a program sums, and the sum of the shares.

Neither atomics nor the device decide the order, so the same inputs give the same bits.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import accumulator, launch
from .tiles import Tile, blocks

# Programs worth having in flight at once. A constant, not the device's count of multiprocessors:
# the split decides the order of the sum, hence the bits.
_PROGRAMS = 264
_ADD = Tile(block_m=0, block_n=1024, num_warps=4, num_stages=1)


def split_rows(m: int, programs: int, block_m: int) -> tuple[int, int]:
    """(splits, rows a split): enough splits that `programs` tiles of output fill a device."""
    steps = blocks(m, block_m)
    splits = min(blocks(_PROGRAMS, programs), max(1, steps // 4))
    chunk = blocks(steps, splits) * block_m
    return blocks(m, chunk), chunk


def shares(splits: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Room for `splits` shares of a gradient of `shape`; a lone share is the gradient itself."""
    dtype = like.dtype if splits == 1 else accumulator(like.dtype)
    return torch.empty((splits, *shape), dtype=dtype, device=like.device)


def add_shares(partial: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum of (splits, …) over its first axis, first to last, in `dtype`."""
    if partial.shape[0] == 1:
        return partial[0]
    total = torch.empty(partial.shape[1:], dtype=dtype, device=partial.device)
    size = total.numel()
    grid = (blocks(size, _ADD.block_n),)
    args = (partial, total, size, partial.shape[0])
    launch(add_kernel, grid, args, _ADD, BLOCK=_ADD.block_n)
    return total


@triton.jit
def add_kernel(partial_ptr, total_ptr, size, splits, BLOCK: tl.constexpr):
    """total[i] = Σ_s partial[s, i], s ascending.

    Reads every share once, writes BLOCK elements.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    total = tl.load(partial_ptr + at, mask=inside, other=0.0)
    for _ in range(1, splits):
        partial_ptr += size
        total += tl.load(partial_ptr + at, mask=inside, other=0.0)
    tl.store(total_ptr + at, total, mask=inside)
