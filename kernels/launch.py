"""Start a kernel on its tensors' device, or let a recorder note what would start.

At every start Triton works out which compiled variant of a kernel the arguments need: some 13 µs of
Python. The variant follows from the tensors' dtypes and 16-byte alignment and from what a `Start`
holds. So each `Start` keeps the variants it has met, and starts them as Triton itself would.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import JITFunction, knobs
from triton.runtime import driver

from .places import kinds
from .tiles import Tile

PRECISIONS = ("ieee", "tf32", "tf32x3")


class Launch(NamedTuple):
    """One kernel start: positional arguments, compile-time constants by name, grid and tile."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constants: dict[str, Any]
    tile: Tile


@dataclass(frozen=True, eq=False)
class Start:
    """All of a launch but its tensors: what follows from their shapes and strides.

    `numbers` are the arguments after the tensors. `compiled` holds, by what a variant depends on
    beside these, a function of (stream, tensors) that starts the compiled kernel.
    """

    grid: tuple[int, ...]
    tile: Tile
    numbers: tuple[int, ...]
    constants: dict[str, Any]
    compiled: dict[tuple[Any, ...], Callable[..., None]] = field(default_factory=dict)


# Versions of Triton whose compiled kernels are known to start as `_runner` starts them. With any
# other version every start goes through Triton.
_starts_as_known = (3, 6) <= tuple(map(int, triton.__version__.split(".")[:2])) <= (3, 9)
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
    """Run `kernel` on the device of the first tensor; `tensors` are its first arguments.

    A grid whose first size is 0 has nothing to run.
    """
    if not start.grid[0]:
        return
    if _recorder is not None:
        args = (*tensors, *start.numbers)
        _recorder(Launch(kernel, start.grid, args, start.constants, start.tile))
    elif not isinstance(kernel, JITFunction):  # under the interpreter
        _start_by_triton(kernel, start, tensors)
    else:
        device = tensors[0].get_device()  # type: ignore[union-attr]
        if device == driver.active.get_current_device():
            _start(kernel, start, tensors, device)
        else:
            with torch.cuda.device(device):
                _start(kernel, start, tensors, device)


def _start(kernel: Any, start: Start, tensors: tuple[Tensor | None, ...], device: int) -> None:
    variant = id(kernel), device, kinds(*tensors)
    run = start.compiled.get(variant)
    if run is not None and not _is_watched(kernel):
        run(driver.active.get_current_stream(device), tensors)
        return
    compiled = _start_by_triton(kernel, start, tensors)
    if _starts_as_known:
        start.compiled[variant] = _runner(kernel, start, compiled)


def _start_by_triton(kernel: Any, start: Start, tensors: tuple[Tensor | None, ...]) -> Any:
    """Start a kernel and return its compiled variant; None under the interpreter."""
    tile = start.tile
    return kernel[start.grid](
        *tensors, *start.numbers, **start.constants,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip


def _is_watched(kernel: Any) -> bool:
    """Whether a profiler or a hook expects to be called at every start, which only Triton does."""
    enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    # Where nothing is registered Triton has an empty chain of calls, or None.
    return bool(
        kernel.pre_run_hooks
        or getattr(enter, "calls", enter is not None)
        or getattr(leave, "calls", leave is not None)
    )


def _runner(kernel: Any, start: Start, compiled: Any) -> Callable[..., None]:
    """A function of (stream, tensors) that starts a compiled variant."""
    run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
    grid = (*start.grid, 1, 1)[:3]
    last_names = kernel.arg_names[len(kernel.arg_names) - len(start.constants) :]
    # The driver takes every argument in the kernel's order, compile-time constants too.
    rest = (*start.numbers, *[start.constants[name] for name in last_names])

    def started(stream: int, tensors: tuple[Tensor | None, ...]) -> None:
        run(*grid, stream, function, metadata, None, None, None, *tensors, *rest)

    return started


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
