"""Start a kernel on its tensors' device, or let a recorder note what would start."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from .tiles import Tile

PRECISIONS = ("ieee", "tf32", "tf32x3")


@dataclass(frozen=True)
class Launch:
    """One kernel start: positional arguments, compile-time constants by name, grid and tile."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constants: dict[str, Any]
    tile: Tile


_recorder: Callable[[Launch], None] | None = None


@contextmanager
def recording(recorder: Callable[[Launch], None]) -> Iterator[None]:
    """Hand every launch to `recorder` instead of a device: works on meta tensors."""
    global _recorder
    previous, _recorder = _recorder, recorder
    try:
        yield
    finally:
        _recorder = previous


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    args: tuple[Any, ...],
    tile: Tile,
    **constants: Any,
) -> None:
    """Run `kernel` on `grid`; the first argument is a tensor of the device to run on."""
    if _recorder is not None:
        _recorder(Launch(kernel, grid, args, constants, tile))
        return
    with torch.cuda.device_of(args[0]):
        kernel[grid](*args, **constants, num_warps=tile.num_warps, num_stages=tile.num_stages)


def arithmetic(dtype: torch.dtype, precision: str) -> dict[str, Any]:
    """Compile-time constants that say how products of `dtype` are formed and summed."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {PRECISIONS}, got {precision!r}")
    if dtype == torch.float64:
        return {"PRECISION": "ieee", "ACC": tl.float64}
    if dtype == torch.float32:
        return {"PRECISION": precision, "ACC": tl.float32}
    return {"PRECISION": "ieee", "ACC": tl.float32}


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Dtype in which sums over `dtype` are kept."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_wide(*tensors: Tensor | None) -> bool:
    """Whether some element lies further than a 32-bit offset from its tensor's first."""
    return any(t is not None and _is_wide(t) for t in tensors)


def _is_wide(tensor: Tensor) -> bool:
    if tensor.is_contiguous():  # the usual case, and quick: this is asked at every launch
        return tensor.numel() > 2**31
    return _last_offset(tensor) >= 2**31


def _last_offset(tensor: Tensor) -> int:
    return sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
