"""Ways to run the layer or the MLP on the same inputs: this library's and its peers'."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle

import torch
from torch import Tensor

from bench.measure import peers
from bench.measure.turns import Contestants
from bilinear.functional import bilinear, bilinear_mlp

FUSED: dict[str, peers.Layer] = {"layer": bilinear, "mlp": bilinear_mlp}
OURS = ("fused", "recompute")
Shape = tuple[int, int, int]  # M, d_in, d
# Bytes: four times the L2 cache of an H200.
_PAST_THE_CACHE = 2**28


def function(way: str, op: str, device: torch.device | str = "cpu") -> peers.Layer:
    """A way as a function of x, weight and, for "mlp", w_p."""
    if way in OURS:
        return partial(FUSED[op], recompute=True) if way == "recompute" else FUSED[op]
    return peers.make(way, op, torch.device(device))


def weights(
    op: str, shape: Shape, d_out: int, dtype: torch.dtype, device: torch.device | str
) -> list[Tensor]:
    """weight (2d, d_in) and, for "mlp", w_p (d_out, d), requiring gradients."""
    _, d_in, d = shape
    sizes = [(2 * d, d_in)] + ([(d_out, d)] if op == "mlp" else [])
    return [_random(size, dtype, device).mul_(size[1] ** -0.5).requires_grad_() for size in sizes]


def inputs(op: str, shape: Shape) -> list[Tensor]:
    """x, weight and w_p (d_in, d), float32 on the CPU."""
    x = _random(shape[:2], torch.float32, "cpu").requires_grad_()
    return [x, *weights(op, shape, shape[1], torch.float32, "cpu")]


def contestants(
    op: str,
    shape: Shape,
    ways: Sequence[str],
    direction: str,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    d_out: int | None = None,
    sets: int | None = None,
    refused: dict[str, str] | None = None,
) -> Contestants:
    """Calls of each way: `direction` is "forward", without gradients, or "forward and backward".

    On a GPU each call takes the next of `sets` inputs, by default enough to exceed the cache. With
    `refused`, a peer that fails `peers.verify` is left out and `refused` gets the reason.
    """
    m, d_in, d = shape
    d_out = d_out or d_in
    if sets is None:
        size = m * d_in * dtype.itemsize
        sets = 1 if device == "cpu" else max(2, min(64, _PAST_THE_CACHE // size))
    parameters = weights(op, shape, d_out, dtype, device)
    xs = [_random((m, d_in), dtype, device).requires_grad_() for _ in range(sets)]
    upstream = _random((m, d if op == "layer" else d_out), dtype, device)

    def call(f: peers.Layer) -> Callable[[], object]:
        turn = cycle(xs)

        def forward() -> object:
            with torch.no_grad():
                return f(next(turn), *parameters)

        def both() -> object:
            x = next(turn)
            return torch.autograd.grad(f(x, *parameters), [x, *parameters], upstream)

        return forward if direction == "forward" else both

    found: Contestants = {}
    for way in ways:
        f = function(way, op, device)
        try:
            peers.verify(way, f, [xs[0], *parameters])
        except Exception as error:  # other packages raise many types
            if refused is None:
                raise
            refused[way] = f"{type(error).__name__}: {error}"
            continue
        found[way] = call(f)
    return found


def _random(size: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    return torch.randn(size, dtype=dtype, device=device)
