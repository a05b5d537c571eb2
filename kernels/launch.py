"""Start a kernel on its tensors' device, or let a recorder note what would start."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

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


class Start(NamedTuple):
    """All of a launch but its tensors: what follows from their shapes and strides, and is known.

    `numbers` are the arguments after the tensors.
    """

    grid: tuple[int, ...]
    tile: Tile
    numbers: tuple[int, ...]
    constants: dict[str, Any]


# The shapes and strides of a tensor's elements, or None for a tensor that isn't there.
Place = tuple[Sequence[int], Sequence[int]] | None

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


def launch(kernel: Any, start: Start, tensors: tuple[Tensor | None, ...]) -> None:
    """Run `kernel` on the device of the first tensor; `tensors` are its first arguments."""
    grid, tile, numbers, constants = start
    if _recorder is not None:
        _recorder(Launch(kernel, grid, (*tensors, *numbers), constants, tile))
        return
    with torch.cuda.device_of(tensors[0]):
        kernel[grid](
            *tensors, *numbers, **constants,
            num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip


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


def is_wide(*places: Place) -> bool:
    """Whether some element lies further than a 32-bit offset from its tensor's first."""
    return any(place is not None and _last_offset(*place) >= 2**31 for place in places)


def rows(m: int, columns: int) -> Place:
    """Shape and strides of a new (m, columns)."""
    return (m, columns), (columns, 1)


def _last_offset(shape: Sequence[int], strides: Sequence[int]) -> int:
    return sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
