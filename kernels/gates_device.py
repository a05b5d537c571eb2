"""Device functions of the gates g, by the names of `bilinear/layer/gates.py`.

    h = g(L) ∘ R     dL = dh ∘ R ∘ g′(L)     dR = dh ∘ g(L)

Formed in float32 (float64 for float64). The identity converts nothing, so that a kernel
compiled for it has the machine code of a kernel without gates.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"

import triton
import triton.language as tl

# The gates that `gated` and `gated_backward` implement.
GATES = ("identity", "silu", "gelu", "gelu_tanh", "relu", "sigmoid", "relu2")
_SQRT_HALF = tl.constexpr(0.5**0.5)
_INV_SQRT_TAU = tl.constexpr(0.3989422804014327)
_TANH_SCALE = tl.constexpr(2 * 0.7978845608028654)
_TANH_CUBE = tl.constexpr(0.044715)


@triton.jit
def left_gradient(dh, left, right, GATE: tl.constexpr):
    """dL from tiles dh, L, R of one dtype, in that dtype."""
    if GATE == "identity":
        return dh * right
    else:
        return gated_backward(_wide(dh) * _wide(right), _wide(left), GATE).to(dh.dtype)


@triton.jit
def right_gradient(dh, left, GATE: tl.constexpr):
    """dR from tiles dh, L of one dtype, in that dtype."""
    if GATE == "identity":
        return dh * left
    else:
        return (_wide(dh) * gated(_wide(left), GATE)).to(dh.dtype)


@triton.jit
def gated(x, GATE: tl.constexpr):
    """g(x)."""
    if GATE == "identity":
        return x
    elif GATE == "silu":
        return x * tl.sigmoid(x)
    elif GATE == "gelu":
        return x * _normal_cdf(x)
    elif GATE == "gelu_tanh":
        return x * _tanh_cdf(x)
    elif GATE == "sigmoid":
        return tl.sigmoid(x)
    else:
        tl.static_assert((GATE == "relu") or (GATE == "relu2"))
        positive = tl.where(x < 0, 0.0, x)  # NaN stays NaN
        return positive if GATE == "relu" else positive * positive


@triton.jit
def gated_backward(dy, x, GATE: tl.constexpr):
    """dy ∘ g′(x)."""
    if GATE == "identity":
        return dy
    elif GATE == "silu":
        s = tl.sigmoid(x)
        return dy * (s * (1 + x * (1 - s)))
    elif GATE == "gelu":
        return dy * (_normal_cdf(x) + x * (_INV_SQRT_TAU * tl.exp(-0.5 * x * x)))
    elif GATE == "gelu_tanh":
        s = _tanh_cdf(x)
        slope = _TANH_SCALE * (1 + 3 * _TANH_CUBE * x * x)
        return dy * (s + x * (s * (1 - s)) * slope)
    elif GATE == "sigmoid":
        s = tl.sigmoid(x)
        return dy * (s * (1 - s))
    else:
        tl.static_assert((GATE == "relu") or (GATE == "relu2"))
        return tl.where(x <= 0, 0.0, dy if GATE == "relu" else dy * (2 * x))


@triton.jit
def _normal_cdf(x):
    return 0.5 * (1 + tl.erf(x * _SQRT_HALF))


@triton.jit
def _tanh_cdf(x):
    """½ (1 + tanh y) as a sigmoid of 2y, which is exact where tanh is near −1.

    Constants stand on the right: Triton 3.9's interpreter takes no constexpr times a tensor.
    """
    return tl.sigmoid((x + x * _TANH_CUBE * x * x) * _TANH_SCALE)


@triton.jit
def _wide(tile):
    if tile.dtype == tl.float64:
        return tile
    else:
        return tile.to(tl.float32)
