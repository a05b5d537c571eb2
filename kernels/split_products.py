"""Device functions: products of float32 matrices on tensor cores, and an exponential.

    x = x₀ + x₁ + x₂, bfloat16 parts of 8 bits each, by rounding and subtracting: exact for float32
    x·y ≈ Σ xᵢ·yⱼ over i + j < 3 ("bf16x6"), or over i + j < 2 of two parts ("bf16x3")

An operand is split once for all products that share it, two elements in each instruction. The
partial products are summed from zero, the smallest first, so that a long sum is rounded once a
product.
"tf32" and "ieee" multiply x itself; float64 takes "ieee", and so does Triton's interpreter, whose
bfloat16 product is wrong.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, attr-defined"

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

# Two elements at a time: round both to bfloat16, widen, subtract.
_ROUND = "cvt.rn.bf16x2.f32 {part}, {odd}, {even};"
_LESS = """
    shl.b32 wide, {part}, 16; sub.f32 even, {even}, wide;
    and.b32 wide, {part}, 0xffff0000; sub.f32 odd, {odd}, wide;
"""
_LATER = {"odd": "odd", "even": "even"}
_TWO = tl.constexpr(
    "{ .reg .f32 even, odd; .reg .b32 wide;"
    + _ROUND.format(part="$0", odd="$3", even="$2")
    + _LESS.format(part="$0", odd="$3", even="$2")
    + _ROUND.format(part="$1", **_LATER)
    + "}"
)
_THREE = tl.constexpr(
    "{ .reg .f32 even, odd; .reg .b32 wide;"
    + _ROUND.format(part="$0", odd="$4", even="$3")
    + _LESS.format(part="$0", odd="$4", even="$3")
    + _ROUND.format(part="$1", **_LATER)
    + _LESS.format(part="$1", **_LATER)
    + _ROUND.format(part="$2", **_LATER)
    + "}"
)


@triton.jit
def parts(x, PRECISION: tl.constexpr):
    """What `product` multiplies: x's bfloat16 parts, largest first, or x itself."""
    if PRECISION == "bf16x6":
        return tl.inline_asm_elementwise(
            _THREE, "=r,=r,=r,r,r", [x], (tl.bfloat16, tl.bfloat16, tl.bfloat16), True, 2
        )
    elif PRECISION == "bf16x3":
        high, low = tl.inline_asm_elementwise(
            _TWO, "=r,=r,r,r", [x], (tl.bfloat16, tl.bfloat16), True, 2
        )
        return high, low, low
    else:
        return x, x, x


@triton.jit
def transposed(x, PRECISION: tl.constexpr):
    """The parts of the transpose."""
    if (PRECISION == "bf16x6") or (PRECISION == "bf16x3"):
        return tl.trans(x[0]), tl.trans(x[1]), tl.trans(x[2])
    else:
        one = tl.trans(x[0])
        return one, one, one


@triton.jit
def product(x, y, PRECISION: tl.constexpr, ACC: tl.constexpr):
    """The product of two matrices from their parts."""
    if PRECISION == "bf16x6":
        total = tl.dot(x[1], y[1])
        total = tl.dot(x[2], y[0], total)
        total = tl.dot(x[0], y[2], total)
        total = tl.dot(x[1], y[0], total)
        total = tl.dot(x[0], y[1], total)
        return tl.dot(x[0], y[0], total)
    elif PRECISION == "bf16x3":
        total = tl.dot(x[1], y[0])
        total = tl.dot(x[0], y[1], total)
        return tl.dot(x[0], y[0], total)
    else:
        return tl.dot(x[0], y[0], input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def exp2(x, PRECISION: tl.constexpr):
    """2ˣ in one instruction; results below 2^-126 become 0."""
    if PRECISION == "ieee":
        return tl.exp2(x)
    else:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1
        )


@triton.jit
def _add_and_most(total, most, more, other):
    return total + more, tl.maximum(most, other, tl.PropagateNan.ALL)


@triton.jit
def sum_and_most(x, y, axis: tl.constexpr, PRECISION: tl.constexpr):
    """Σ x and max y along an axis, together."""
    if PRECISION == "ieee":  # the interpreter has tl.sum and tl.max, but no tl.reduce
        return tl.sum(x, axis), tl.max(y, axis)
    else:
        return tl.reduce((x, y), axis, _add_and_most)


@triton.jit
def _add_both(x, y, more_x, more_y):
    return x + more_x, y + more_y


@triton.jit
def two_sums(x, y, axis: tl.constexpr, PRECISION: tl.constexpr):
    """Σ x and Σ y along an axis, together."""
    if PRECISION == "ieee":
        return tl.sum(x, axis), tl.sum(y, axis)
    else:
        return tl.reduce((x, y), axis, _add_both)
