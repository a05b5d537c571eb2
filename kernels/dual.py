"""Launchers of the dual matmul: one pass over x feeds the left and the right product.

Tensors in, tensors out. All floating tensors of one call share one dtype and one device; x and
gradients may have any strides (zero strides of `expand` too), weights as well; what is returned is
contiguous. `precision` ("ieee" | "tf32" | "tf32x3") is how float32 products are formed; other
dtypes ignore it (bfloat16 and float16 accumulate in float32, float64 in float64). `gate` names g.

A launcher looks up what follows from its tensors' places and launches that; `ready_…` give it to a
caller who keeps it.
"""

from collections.abc import Callable
from functools import lru_cache

from torch import Tensor

from . import dispatch
from .dual_device import dual_input_kernel, dual_kernel, dual_weight_kernel
from .launch import Start, arithmetic, launch
from .partials import Sum, ready, split_rows
from .places import How, Place, is_wide, place, rows
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
    how = How(x.dtype, x.device, precision, gate)
    return ready_forward(place(x), place(weight), how, save_preact, config)(x, weight, bias)


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
    how = How(x.dtype, x.device, precision, gate)
    run = ready_backward(place(dh), place(x), place(weight), how, with_h, config)
    return run(dh, x, weight, bias)


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
    how = How(dh.dtype, dh.device, precision, gate)
    return ready_input(place(dh), place(preact), place(weight), how, config)(dh, preact, weight)


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
    how = How(dh.dtype, dh.device, precision, gate)
    run = ready_weight(place(dh), place(preact), place(x), how, bias, config)
    dweight, dbias = run(dh, preact, x)
    assert dweight is not None
    return dweight, dbias


@lru_cache(4096)
def ready_forward(
    x: Place, weight: Place, how: How, save_preact: bool, config: Tile | None = None
) -> Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]:
    """`dual_forward` of tensors of these places."""
    start = _start(x, weight, None, how, config)
    m, d = x[0][0], weight[0][0] // 2
    of_h, of_preact = (m, d), (m, 2 * d)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        h = x.new_empty(of_h)
        preact = x.new_empty(of_preact) if save_preact else None
        bias = bias.contiguous() if bias is not None else None
        launch(dual_kernel, start, (x, weight, bias, None, h, preact))
        return h, preact

    return run


@lru_cache(4096)
def ready_backward(
    dh: Place, x: Place, weight: Place, how: How, with_h: bool, config: Tile | None = None
) -> Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]:
    """`dual_backward` of tensors of these places."""
    start = _start(x, weight, dh, how, config)
    of_h, of_dpreact = dh[0], (dh[0][0], weight[0][0])

    def run(
        dh: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        dpreact = x.new_empty(of_dpreact)
        h = x.new_empty(of_h) if with_h else None
        bias = bias.contiguous() if bias is not None else None
        launch(dual_kernel, start, (x, weight, bias, dh, h, dpreact))
        return dpreact, h

    return run


def _start(x: Place, weight: Place, dh: Place | None, how: How, config: Tile | None) -> Start:
    """How `dual_kernel` starts."""
    (m, d_in), d = x[0], weight[0][0] // 2
    name = "dual_forward" if dh is None else "dual_backward"
    tile = config or dispatch.tile(name, m, how.dtype, how.precision, how.device)
    if config is None and dh is not None:
        tile = dispatch.tile_for_gate(tile, how.gate)
    tile = tile.fit(d=d, k=d_in)
    numbers = (m, d, d_in, *x[1], *weight[1], *(dh[1] if dh else (0, 0)))
    constants = {
        "BM": tile.block_m, "BD": tile.block_d, "BK": tile.block_k,
        "EVEN_K": d_in % tile.block_k == 0, "WIDE": is_wide(x, weight, dh, rows(m, 2 * d)),
        "GATE": how.gate,
    }  # fmt: skip
    grid = (blocks(m, tile.block_m) * blocks(d, tile.block_d),)
    return Start(grid, tile, numbers, constants | arithmetic(how.dtype, how.precision))


@lru_cache(4096)
def ready_input(
    dh: Place, preact: Place, weight: Place, how: How, config: Tile | None = None
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """`dual_backward_input` of tensors of these places."""
    (m, d), d_in = dh[0], weight[0][1]
    tile = config or dispatch.tile("dual_backward_input", m, how.dtype, how.precision, how.device)
    tile, of_dx = tile.fit(d=d, n=d_in), (m, d_in)
    start = Start(
        (blocks(m, tile.block_m) * blocks(d_in, tile.block_n),), tile,
        (m, d, d_in, *dh[1], *preact[1], *weight[1]),
        _gradient_constants(tile, how, dh, preact, weight, rows(m, d_in)),
    )  # fmt: skip

    def run(dh: Tensor, preact: Tensor, weight: Tensor) -> Tensor:
        dx = dh.new_empty(of_dx)
        launch(dual_input_kernel, start, (dh, preact, weight, dx))
        return dx

    return run


@lru_cache(4096)
def ready_weight(
    dh: Place, preact: Place, x: Place, how: How, bias: bool, config: Tile | None = None
) -> Callable[[Tensor, Tensor, Tensor], list[Tensor | None]]:
    """`dual_backward_weight` of tensors of these places."""
    (m, d), d_in = dh[0], x[0][1]
    if m == 0:
        return lambda dh, preact, x: [
            x.new_zeros(2 * d, d_in),
            x.new_zeros(2 * d) if bias else None,
        ]
    tile = config or dispatch.tile("dual_backward_weight", m, how.dtype, how.precision, how.device)
    tile = tile.fit(d=d, n=d_in)
    programs = blocks(d, tile.block_d) * blocks(d_in, tile.block_n)
    splits, chunk = split_rows(m, programs, tile.block_m)
    start = Start(
        (programs, splits), tile, (m, d, d_in, chunk, *dh[1], *preact[1], *x[1]),
        _gradient_constants(tile, how, dh, preact, x, rows(splits * 2 * d, d_in)),
    )  # fmt: skip
    of_weight = Sum(splits, (2 * d, d_in), how.dtype)
    of_bias = Sum(splits, (2 * d,), how.dtype) if bias else None
    return ready(dual_weight_kernel, start, 3, (of_weight, of_bias))


def _gradient_constants(tile: Tile, how: How, *places: Place) -> dict[str, object]:
    return {
        "BM": tile.block_m, "BD": tile.block_d, "BN": tile.block_n,
        "WIDE": is_wide(*places), "GATE": how.gate, **arithmetic(how.dtype, how.precision),
    }  # fmt: skip
