"""Kernels of the dual matmul and of its gradients.

    L = x W_lᵀ + b_l     R = x W_rᵀ + b_r     h = g(L) ∘ R
    dL = dh ∘ R ∘ g′(L)     dR = dh ∘ g(L)
    dx = dL W_l + dR W_r     dW_l = dLᵀ x     dW_r = dRᵀ x     db = column sums

preact (M, 2d) is [L, R], dpreact [dL, dR], left half first; GATE names g (`gates_device.py`).
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"

import triton
import triton.language as tl

from .gates_device import gated, left_gradient, right_gradient
from .products import products, tile_order, widen


@triton.jit(do_not_specialize=["m"])
def dual_kernel(
    x_ptr, weight_ptr, bias_ptr, dh_ptr, h_ptr, preact_ptr,
    m, d, d_in,
    stride_xm, stride_xk, stride_wn, stride_wk, stride_gm, stride_gn,
    BM: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr, EVEN_K: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """L, R tiles (BM, BD) from one pass over x (BM, BK) and the two weights (BK, BD).

    Reads x, weight, bias and, for gradients, dh. Writes h if h_ptr; at preact_ptr, if there
    is one, [L, R] without dh, its gradient [dL, dR] with it.
    """
    pid_m, pid_d = tile_order(tl.program_id(0), tl.cdiv(m, BM), tl.cdiv(d, BD), 8)
    rows = pid_m * BM + tl.arange(0, BM)
    units = pid_d * BD + tl.arange(0, BD)
    left, right = products(
        x_ptr, weight_ptr, bias_ptr, rows, units, m, d, d_in,
        widen(stride_xm, WIDE), widen(stride_xk, WIDE),
        widen(stride_wn, WIDE), widen(stride_wk, WIDE),
        BM, BD, BK, EVEN_K, PRECISION, ACC,
    )  # fmt: skip
    inside = (rows < m)[:, None] & (units < d)[None, :]
    width = widen(d, WIDE)
    if h_ptr is not None:
        h_at = h_ptr + rows[:, None] * width + units[None, :]
        tl.store(h_at, gated(left, GATE) * right, mask=inside)
    if preact_ptr is not None:
        preact_at = preact_ptr + rows[:, None] * (2 * width) + units[None, :]
        if dh_ptr is not None:
            dh_at = dh_ptr + rows[:, None] * widen(stride_gm, WIDE)
            dh = tl.load(dh_at + units[None, :] * widen(stride_gn, WIDE), mask=inside).to(ACC)
            tl.store(preact_at, left_gradient(dh, left, right, GATE), mask=inside)
            tl.store(preact_at + d, right_gradient(dh, left, GATE), mask=inside)
        else:
            tl.store(preact_at, left, mask=inside)
            tl.store(preact_at + d, right, mask=inside)


@triton.jit(do_not_specialize=["m"])
def dual_input_kernel(
    dh_ptr, preact_ptr, weight_ptr, dx_ptr,
    m, d, d_in,
    stride_gm, stride_gn, stride_lm, stride_ln, stride_wn, stride_wk,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """dx tile (BM, BN).

    Each step over d reads dh, L, R (BM, BD) and both weights (BD, BN), and forms dL, dR in
    registers.
    """
    pid_m, pid_n = tile_order(tl.program_id(0), tl.cdiv(m, BM), tl.cdiv(d_in, BN), 8)
    rows = pid_m * BM + tl.arange(0, BM)
    cols = pid_n * BN + tl.arange(0, BN)
    row = tl.minimum(rows, m - 1)[:, None]
    col_inside = (cols < d_in)[None, :]
    units = tl.arange(0, BD)
    gn, ln, wn = widen(stride_gn, WIDE), widen(stride_ln, WIDE), widen(stride_wn, WIDE)
    dh_at = dh_ptr + row * widen(stride_gm, WIDE) + units[None, :] * gn
    l_at = preact_ptr + row * widen(stride_lm, WIDE) + units[None, :] * ln
    r_at = l_at + d * ln
    w_l_at = weight_ptr + units[:, None] * wn + cols[None, :] * widen(stride_wk, WIDE)
    w_r_at = w_l_at + d * wn
    dx = tl.zeros((BM, BN), ACC)
    tl.assume(d > 0)
    for start in range(0, d, BD):
        inside = units < d - start
        dh = tl.load(dh_at, mask=inside[None, :], other=0.0)
        left = tl.load(l_at, mask=inside[None, :], other=0.0)
        right = tl.load(r_at, mask=inside[None, :], other=0.0)
        w_l = tl.load(w_l_at, mask=inside[:, None] & col_inside, other=0.0)
        w_r = tl.load(w_r_at, mask=inside[:, None] & col_inside, other=0.0)
        d_left = left_gradient(dh, left, right, GATE)
        dx = tl.dot(d_left, w_l, dx, input_precision=PRECISION, out_dtype=ACC)
        d_right = right_gradient(dh, left, GATE)
        dx = tl.dot(d_right, w_r, dx, input_precision=PRECISION, out_dtype=ACC)
        dh_at += BD * gn
        l_at += BD * ln
        r_at += BD * ln
        w_l_at += BD * wn
        w_r_at += BD * wn
    dx_at = dx_ptr + rows[:, None] * widen(d_in, WIDE) + cols[None, :]
    tl.store(dx_at, dx, mask=(rows < m)[:, None] & (cols < d_in)[None, :])


@triton.jit(do_not_specialize=["m", "chunk"])
def dual_weight_kernel(
    dh_ptr, preact_ptr, x_ptr, partial_ptr, bias_partial_ptr,
    m, d, d_in, chunk,
    stride_gm, stride_gn, stride_lm, stride_ln, stride_xm, stride_xk,
    BM: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """dW_l, dW_r tiles (BD, BN), summed over `chunk` rows.

    Each step reads dh, L, R (BM, BD) and x (BM, BN). Writes this chunk's share of dweight
    (2d, d_in) and, from the first column block, of dbias (2d,); partials.py adds the shares
    in order.
    """
    pid_d, pid_n = tile_order(tl.program_id(0), tl.cdiv(d, BD), tl.cdiv(d_in, BN), 8)
    split = tl.program_id(1)
    units = pid_d * BD + tl.arange(0, BD)
    cols = pid_n * BN + tl.arange(0, BN)
    unit_inside = (units < d)[None, :]
    col_inside = (cols < d_in)[None, :]
    gm, lm, xm = widen(stride_gm, WIDE), widen(stride_lm, WIDE), widen(stride_xm, WIDE)
    last = tl.minimum((split + 1) * chunk, m)
    rows = split * chunk + tl.arange(0, BM)
    dh_at = dh_ptr + rows[:, None] * gm + units[None, :] * widen(stride_gn, WIDE)
    l_at = preact_ptr + rows[:, None] * lm + units[None, :] * widen(stride_ln, WIDE)
    r_at = l_at + d * widen(stride_ln, WIDE)
    x_at = x_ptr + rows[:, None] * xm + cols[None, :] * widen(stride_xk, WIDE)
    acc_l = tl.zeros((BD, BN), ACC)
    acc_r = tl.zeros((BD, BN), ACC)
    sum_l = tl.zeros((BD,), ACC)
    sum_r = tl.zeros((BD,), ACC)
    tl.assume(last > split * chunk)
    for start in range(split * chunk, last, BM):
        inside = (tl.arange(0, BM) < last - start)[:, None]
        dh = tl.load(dh_at, mask=inside & unit_inside, other=0.0)
        left = tl.load(l_at, mask=inside & unit_inside, other=0.0)
        right = tl.load(r_at, mask=inside & unit_inside, other=0.0)
        x = tl.load(x_at, mask=inside & col_inside, other=0.0)
        d_left, d_right = left_gradient(dh, left, right, GATE), right_gradient(dh, left, GATE)
        acc_l = tl.dot(tl.trans(d_left), x, acc_l, input_precision=PRECISION, out_dtype=ACC)
        acc_r = tl.dot(tl.trans(d_right), x, acc_r, input_precision=PRECISION, out_dtype=ACC)
        if bias_partial_ptr is not None:
            sum_l += tl.sum(d_left.to(ACC), 0)
            sum_r += tl.sum(d_right.to(ACC), 0)
        dh_at += BM * gm
        l_at += BM * lm
        r_at += BM * lm
        x_at += BM * xm
    share = widen(split, WIDE) * (2 * d)
    at = partial_ptr + (share + units)[:, None] * widen(d_in, WIDE) + cols[None, :]
    inside = (units < d)[:, None] & (cols < d_in)[None, :]
    tl.store(at, acc_l, mask=inside)
    tl.store(at + d * widen(d_in, WIDE), acc_r, mask=inside)
    # The outer condition is decided when compiling, the inner when running.
    if bias_partial_ptr is not None:  # noqa: SIM102
        if pid_n == 0:
            tl.store(bias_partial_ptr + share + units, sum_l, mask=units < d)
            tl.store(bias_partial_ptr + share + d + units, sum_r, mask=units < d)
