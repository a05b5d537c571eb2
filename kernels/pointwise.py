"""The elementwise kernels that follow or precede a library matmul with the packed weight.

    h = g(L) ∘ R     dL = dh ∘ R ∘ g′(L)     dR = dh ∘ g(L)

preact (M, 2d) is [L, R], dpreact [dL, dR], left half first. Products are formed in float32 (float64
for float64) and rounded once. `gate` names g (`gates_device.py`).
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from collections.abc import Callable
from functools import lru_cache

import triton
import triton.language as tl
from torch import Tensor

from .gates_device import gated, left_gradient, right_gradient
from .launch import Start, launch
from .places import Place, is_wide, place, rows
from .products import widen
from .tiles import Tile, blocks

# Bound by memory: one program moves 16 KB a tensor of bfloat16 whatever the device.
_BLOCK = 4096
_BLOCK_D = 1024
_RUN = Tile(block_m=0, num_warps=4, num_stages=1)


def product_forward(preact: Tensor, gate: str = "identity") -> Tensor:
    """h = g(L) ∘ R, (M, d), of preact = [L, R], (M, 2d); any strides."""
    return ready_forward(place(preact), gate)(preact)


def product_backward(
    dh: Tensor, preact: Tensor, gate: str = "identity", *, with_h: bool = False
) -> tuple[Tensor, Tensor | None]:
    """dpreact = [dL, dR], (M, 2d), of preact (M, 2d) and dh (M, d); `with_h` adds h."""
    return ready_backward(place(dh), place(preact), gate, with_h)(dh, preact)


@lru_cache(4096)
def ready_forward(preact: Place, gate: str) -> Callable[[Tensor], Tensor]:
    """`product_forward` of tensors of this place."""
    start, of_h = _start(preact, None, gate), (preact[0][0], preact[0][1] // 2)

    def run(preact: Tensor) -> Tensor:
        h = preact.new_empty(of_h)
        launch(product_kernel, start, (preact, None, h, None))
        return h

    return run


@lru_cache(4096)
def ready_backward(
    dh: Place, preact: Place, gate: str, with_h: bool
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]:
    """`product_backward` of tensors of these places."""
    start, of_dpreact, of_h = _start(preact, dh, gate), preact[0], dh[0]

    def run(dh: Tensor, preact: Tensor) -> tuple[Tensor, Tensor | None]:
        dpreact = preact.new_empty(of_dpreact)
        h = preact.new_empty(of_h) if with_h else None
        launch(product_kernel, start, (preact, dh, h, dpreact))
        return dpreact, h

    return run


def _start(preact: Place, dh: Place | None, gate: str) -> Start:
    m, d = preact[0][0], preact[0][1] // 2
    block_d = min(_BLOCK_D, triton.next_power_of_2(d))
    block_m = _BLOCK // block_d
    numbers = (m, d, *preact[1], *(dh[1] if dh else (0, 0)))
    wide = is_wide(preact, dh, rows(m, 2 * d))
    constants = {"BM": block_m, "BD": block_d, "WIDE": wide, "GATE": gate}
    return Start((blocks(m, block_m) * blocks(d, block_d),), _RUN, numbers, constants)


@triton.jit(do_not_specialize=["m"])
def product_kernel(
    preact_ptr, dh_ptr, h_ptr, dpreact_ptr,
    m, d,
    stride_lm, stride_ln, stride_gm, stride_gn,
    BM: tl.constexpr, BD: tl.constexpr, WIDE: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """One (BM, BD) tile of L, R and, for gradients, dh.

    Writes h if h_ptr, [dL, dR] if dpreact_ptr.
    """
    n_d = tl.cdiv(d, BD)
    rows = (tl.program_id(0) // n_d * BM + tl.arange(0, BM))[:, None]
    units = (tl.program_id(0) % n_d * BD + tl.arange(0, BD))[None, :]
    inside = (rows < m) & (units < d)
    ln, width = widen(stride_ln, WIDE), widen(d, WIDE)
    l_at = preact_ptr + rows * widen(stride_lm, WIDE) + units * ln
    left = tl.load(l_at, mask=inside)
    right = tl.load(l_at + d * ln, mask=inside)
    if preact_ptr.dtype.element_ty != tl.float64:
        left, right = left.to(tl.float32), right.to(tl.float32)
    if h_ptr is not None:
        tl.store(h_ptr + rows * width + units, gated(left, GATE) * right, mask=inside)
    if dpreact_ptr is not None:
        dh_at = dh_ptr + rows * widen(stride_gm, WIDE) + units * widen(stride_gn, WIDE)
        dh = tl.load(dh_at, mask=inside).to(left.dtype)
        dpreact_at = dpreact_ptr + rows * (2 * width) + units
        tl.store(dpreact_at, left_gradient(dh, left, right, GATE), mask=inside)
        tl.store(dpreact_at + d, right_gradient(dh, left, GATE), mask=inside)
