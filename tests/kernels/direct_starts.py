"""Starts each kernel of the layer by Triton and directly, on a driver that runs nothing.

Both must give the driver the same. Prints how many starts were compared, as JSON. It needs a
process of its own: Triton must not interpret the kernels here.
"""

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from triton import knobs

from bench.compile_report import launches
from bench.measure import no_driver
from bilinear.kernels import dual, launch, mlp, partials, places, pointwise
from bilinear.kernels.tiles import Tile

# What the driver is given, in the order in which Triton's launchers take it.
_GRID_AND_STREAM, _FUNCTION, _METADATA, _HOOK, _ARGUMENTS = slice(4), 4, 5, 7, slice(9, None)
_given: list[tuple[Any, ...]] = []


def new(shape: tuple[int, ...], dtype: torch.dtype, aligned: bool) -> Tensor:
    """A tensor whose memory starts at a multiple of 16 bytes, or one element behind it."""
    size = torch.Size(shape).numel()
    flat = torch.empty(size + 16, dtype=dtype)
    first = -flat.data_ptr() % 16 // flat.element_size() + (not aligned)
    return flat[first : first + size].view(shape)


def start_all(dtype: torch.dtype, aligned: bool) -> None:
    """Every kernel of the layer, forward and backward."""
    m, d_in, d, d_out = 300, 32, 16, 24
    shapes = [(m, d_in), (2 * d, d_in), (2 * d,), (d_out, d), (m, d), (m, 2 * d), (m, d_out)]
    x, weight, bias, w_p, dh, preact, dout = (new(one, dtype, aligned) for one in shapes)
    how: dict[str, Any] = {"precision": "ieee"}
    dual.dual_forward(x, weight, bias, save_preact=True, **how)
    dual.dual_forward(x, weight, None, gate="silu", **how)
    dual.dual_backward(dh, x, weight, bias, with_h=True, **how)
    dual.dual_backward_input(dh, preact, weight, **how)
    dual.dual_backward_weight(dh, preact, x, bias=True, **how)
    mlp.mlp_forward(x, weight, bias, w_p, None, **how)
    mlp.mlp_backward(dout, x, weight, bias, w_p, **how)
    small = Tile(64, 4, 2, block_d=16, block_n=16, block_k=16)
    config = {f"mlp_backward{of}": small for of in ("", "_input", "_weight", "_projection")}
    mlp.mlp_backward(dout, x, weight, bias, w_p, config=config, **how)
    pointwise.product_forward(preact)
    pointwise.product_backward(dh, preact, with_h=True)
    partials.add_shares(new((9, d, d_in), dtype, aligned), dtype)


def starts(dtype: torch.dtype, aligned: bool) -> list[tuple[Any, ...]]:
    """What `start_all` gives the driver, but hooks; of tensors what a kernel sees."""
    _given.clear()
    start_all(dtype, aligned)
    return [
        (*one[_GRID_AND_STREAM], one[_FUNCTION], one[_METADATA], *map(seen, one[_ARGUMENTS]))
        for one in _given
    ]


def seen(value: Any) -> Any:
    """What a kernel sees of an argument."""
    if not isinstance(value, Tensor):
        return type(value), value
    return value.dtype, value.shape, value.stride(), value.data_ptr() % 16 == 0


def started_by_triton() -> int:
    """How many of the last starts Triton made: it gives its hooks, called or not."""
    return sum(one[_HOOK] is not None for one in _given)


@contextmanager
def hook() -> Iterator[list[Any]]:
    """A hook of a profiler's; the list gets what it is called with."""
    calls: list[Any] = []
    knobs.runtime.launch_enter_hook.add(calls.append)
    try:
        yield calls
    finally:
        knobs.runtime.launch_enter_hook.remove(calls.append)


def main() -> None:
    no_driver.install(lambda *args: _given.append(args))
    kinds = list(itertools.product((torch.float32, torch.bfloat16), (True, False)))
    launch._starts_as_known = False
    expected = []
    for kind in kinds:
        expected.append(starts(*kind))
        assert started_by_triton() == len(_given) > 12
    launch._starts_as_known = True
    for launch.kinds in (places._kinds, places.kinds):
        for kind in kinds:
            starts(*kind)  # Triton starts what is new, and each `Start` keeps the variant
        for kind, by_triton in zip(kinds, expected, strict=True):
            assert starts(*kind) == by_triton, kind
            assert started_by_triton() == 0
    # Each dtype and alignment has variants of its own, but where shares are added, which are new
    # tensors: to start another's would have been seen.
    functions = [{one[_FUNCTION] for one in each} for each in expected]
    assert all(len(a & b) <= 2 < len(a) for a, b in itertools.combinations(functions, 2))
    with hook():
        assert starts(*kinds[0]) == expected[0]
        assert started_by_triton() == len(_given)
    pointwise.product_kernel.add_pre_run_hook(lambda *_, **__: None)
    starts(*kinds[0])
    assert started_by_triton() == 2  # forward and backward
    # What `launch` assumes of every kernel: compile-time constants are its last parameters.
    for shape in ("step", "run", "batch"):
        for one in launches(f"grid_{shape}_64_16", "bf16x6", 90):
            assert {*one.kernel.arg_names[len(one.args) :]} == {*one.constants}, shape
    print(json.dumps({"compared": sum(map(len, expected))}))


if __name__ == "__main__":
    main()
