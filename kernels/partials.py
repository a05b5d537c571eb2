"""Sums over rows in two ordered stages: which rows a program sums, and the sum of the shares.

Neither atomics nor the device decide the order, so the same inputs give the same bits.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Start, accumulator, launch
from .tiles import Tile, blocks

# Programs to run at once, about one a multiprocessor: more would only add shares to write and
# to read. A constant, not the device's count: the split decides the order of
# the sum, hence the bits.
_PROGRAMS = 132
# Elements of shares a program reads at a time: a few shares of many sums, or many of a few sums, so
# that small gradients too are added by many programs.
_AT_ONCE = 4096
_FEW, _MANY = 8, 128
_ADD = Tile(block_m=0, num_warps=4, num_stages=1)


def split_rows(m: int, programs: int, block_m: int) -> tuple[int, int]:
    """(splits, rows a split): enough splits that `programs` tiles of output fill a device."""
    steps = blocks(m, block_m)
    splits = min(blocks(_PROGRAMS, programs), max(1, steps // 4))
    chunk = blocks(steps, splits) * block_m
    return blocks(m, chunk), chunk


@dataclass(frozen=True)
class Sum:
    """A gradient that `splits` programs form in shares; a lone share is the gradient itself."""

    splits: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def memory(self, like: Tensor) -> Tensor:
        """What the programs write their shares to, one behind the other."""
        if self.splits == 1:
            return like.new_empty(self.shape)
        return like.new_empty((self.splits, *self.shape), dtype=accumulator(self.dtype))

    def total(self, memory: Tensor) -> Tensor:
        """The gradient, once they have."""
        return memory if self.splits == 1 else add_shares(memory, self.dtype)


def ready(
    kernel: Any, start: Start, takes: int, sums: Sequence[Sum | None]
) -> Callable[..., list[Any]]:
    """A function of tensors that starts a kernel on the first `takes` and returns its `sums`."""

    in_shares = any(s is not None and s.splits > 1 for s in sums)

    def run(*given: Any) -> list[Any]:
        made = [None if s is None else s.memory(given[0]) for s in sums]
        launch(kernel, start, (*given[:takes], *made))
        if in_shares:
            each = zip(sums, made, strict=True)
            return [None if s is None or memory is None else s.total(memory) for s, memory in each]
        return made

    return run


def add_shares(partial: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum of (splits, …) over its first axis, in `dtype`, in one order whatever the device."""
    total = partial.new_empty(partial.shape[1:], dtype=dtype)
    launch(add_kernel, _add_start(partial.shape[0], total.numel()), (partial, total))
    return total


@lru_cache(4096)
def _add_start(splits: int, size: int) -> Start:
    together = _FEW if splits <= _FEW else _MANY
    block = _AT_ONCE // together
    constants = {"TOGETHER": together, "BLOCK": block}
    return Start((blocks(size, block),), _ADD, (size, splits), constants)


@triton.jit(do_not_specialize=["splits"])
def add_kernel(partial_ptr, total_ptr, size, splits, TOGETHER: tl.constexpr, BLOCK: tl.constexpr):
    """total[i] = Σ_s partial[s, i]: every TOGETHER-th share, s ascending, then a tree of those.

    Reads every share once, TOGETHER of them at a time, and writes BLOCK elements.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = (at < size)[None, :]
    share = tl.arange(0, TOGETHER)
    stride = tl.cast(size, tl.int64)
    share_at = partial_ptr + share[:, None] * stride + at[None, :]
    sums = tl.load(share_at, mask=inside & (share < splits)[:, None], other=0.0)
    for first in range(TOGETHER, splits, TOGETHER):
        share_at += TOGETHER * stride
        more = inside & (share < splits - first)[:, None]
        sums += tl.load(share_at, mask=more, other=0.0)
    tl.store(total_ptr + at, tl.sum(sums, 0), mask=at < size)
