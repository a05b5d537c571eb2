"""Kernels of the whole MLP; L, R, h and their gradients never leave the chip.

L = x W_lᵀ + b_l     R = x W_rᵀ + b_r        h = g(L) ∘ R     out = h W_pᵀ + b_p
dh = dout W_p        dL = dh ∘ R ∘ g′(L)     dR = dh ∘ g(L)   dW_p = doutᵀ h
dx = dL W_l + dR W_r     dW_l = dLᵀ x     dW_r = dRᵀ x     db = column sums

GATE names g (`gates_device.py`).
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"

import triton
import triton.language as tl

from .gates_device import gated, left_gradient, right_gradient
from .products import hidden_grad, products, widen


@triton.jit(do_not_specialize=["m"])
def mlp_kernel(
    x_ptr, weight_ptr, bias_ptr, w_p_ptr, b_p_ptr, out_ptr,
    m, d, d_in, d_out,
    stride_xm, stride_xk, stride_wn, stride_wk, stride_pn, stride_pd,
    BM: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    EVEN_K: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    GATE: tl.constexpr,
):  # fmt: skip
    """out tile (BM, BN): for each block of units, L and R (BM, BD) over d_in, then h times W_p.

    Reads x, weight, bias, w_p, b_p; writes out (M, d_out).
    """
    wn, wk = widen(stride_wn, WIDE), widen(stride_wk, WIDE)
    pn, pd = widen(stride_pn, WIDE), widen(stride_pd, WIDE)
    xm, xk = widen(stride_xm, WIDE), widen(stride_xk, WIDE)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.program_id(1) * BN + tl.arange(0, BN)
    col_inside = cols < d_out
    out = tl.zeros((BM, BN), ACC)
    tl.assume(d > 0)
    for start in range(0, d, BD):
        units = start + tl.arange(0, BD)
        left, right = products(
            x_ptr, weight_ptr, bias_ptr, rows, units, m, d, d_in,
            xm, xk, wn, wk, BM, BD, BK, EVEN_K, PRECISION, ACC,
        )  # fmt: skip
        w_p_at = w_p_ptr + units[:, None] * pd + cols[None, :] * pn
        w_p = tl.load(w_p_at, mask=(units < d)[:, None] & col_inside[None, :], other=0.0)
        # Units past d repeat the last one, whose h may be infinite in 16 bits: no 0 · ∞.
        h = tl.where((units < d)[None, :], gated(left, GATE) * right, 0.0).to(w_p.dtype)
        out = tl.dot(h, w_p, out, input_precision=PRECISION, out_dtype=ACC)
    if b_p_ptr is not None:
        out += tl.load(b_p_ptr + cols, mask=col_inside, other=0.0)[None, :]
    out_at = out_ptr + rows[:, None] * widen(d_out, WIDE) + cols[None, :]
    tl.store(out_at, out, mask=(rows < m)[:, None] & col_inside[None, :])


@triton.jit(do_not_specialize=["m"])
def mlp_input_kernel(
    dout_ptr, x_ptr, weight_ptr, bias_ptr, w_p_ptr, dx_ptr,
    m, d, d_in, d_out,
    stride_gm, stride_gn, stride_xm, stride_xk, stride_wn, stride_wk, stride_pn, stride_pd,
    BM: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    EVEN_K: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    GATE: tl.constexpr,
):  # fmt: skip
    """dx tile (BM, BN).

    For each block of units, L and R over d_in, dh over d_out, then both products with the
    weights (BD, BN). Reads dout, x and the weights; writes dx (M, d_in).
    """
    wn, wk = widen(stride_wn, WIDE), widen(stride_wk, WIDE)
    pn, pd = widen(stride_pn, WIDE), widen(stride_pd, WIDE)
    gm, gn = widen(stride_gm, WIDE), widen(stride_gn, WIDE)
    xm, xk = widen(stride_xm, WIDE), widen(stride_xk, WIDE)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.program_id(1) * BN + tl.arange(0, BN)
    dx = tl.zeros((BM, BN), ACC)
    tl.assume(d > 0)
    for start in range(0, d, BD):
        units = start + tl.arange(0, BD)
        left, right = products(
            x_ptr, weight_ptr, bias_ptr, rows, units, m, d, d_in,
            xm, xk, wn, wk, BM, BD, BK, EVEN_K, PRECISION, ACC,
        )  # fmt: skip
        dh = hidden_grad(
            dout_ptr, w_p_ptr, rows, units, m, d, d_out,
            gm, gn, pn, pd, BM, BD, BK, PRECISION, ACC,
        )  # fmt: skip
        inside = (units < d)[:, None] & (cols < d_in)[None, :]
        w_at = weight_ptr + units[:, None] * wn + cols[None, :] * wk
        w_l = tl.load(w_at, mask=inside, other=0.0)
        w_r = tl.load(w_at + d * wn, mask=inside, other=0.0)
        d_left = left_gradient(dh, left, right, GATE).to(w_l.dtype)
        d_right = right_gradient(dh, left, GATE).to(w_l.dtype)
        dx = tl.dot(d_left, w_l, dx, input_precision=PRECISION, out_dtype=ACC)
        dx = tl.dot(d_right, w_r, dx, input_precision=PRECISION, out_dtype=ACC)
    dx_at = dx_ptr + rows[:, None] * widen(d_in, WIDE) + cols[None, :]
    tl.store(dx_at, dx, mask=(rows < m)[:, None] & (cols < d_in)[None, :])


@triton.jit(do_not_specialize=["m", "chunk"])
def mlp_weight_kernel(
    dout_ptr, x_ptr, weight_ptr, bias_ptr, w_p_ptr, partial_ptr, bias_partial_ptr,
    m, d, d_in, d_out, chunk,
    stride_gm, stride_gn, stride_xm, stride_xk, stride_wn, stride_wk, stride_pn, stride_pd,
    BM: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    EVEN_K: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    GATE: tl.constexpr,
):  # fmt: skip
    """dW_l, dW_r tiles (BD, BN), summed over `chunk` rows.

    Each step forms L, R, dh (BM, BD) and reads x (BM, BN). Writes this chunk's share of
    dweight (2d, d_in) and, from the first column block, of dbias (2d,); partials.py adds
    the shares in order.
    """
    wn, wk = widen(stride_wn, WIDE), widen(stride_wk, WIDE)
    pn, pd = widen(stride_pn, WIDE), widen(stride_pd, WIDE)
    gm, gn = widen(stride_gm, WIDE), widen(stride_gn, WIDE)
    xm, xk = widen(stride_xm, WIDE), widen(stride_xk, WIDE)
    n_d = tl.cdiv(d, BD)
    units = tl.program_id(0) % n_d * BD + tl.arange(0, BD)
    pid_n = tl.program_id(0) // n_d
    cols = pid_n * BN + tl.arange(0, BN)
    split = tl.program_id(1)
    last = tl.minimum((split + 1) * chunk, m)
    acc_l = tl.zeros((BD, BN), ACC)
    acc_r = tl.zeros((BD, BN), ACC)
    sum_l = tl.zeros((BD,), ACC)
    sum_r = tl.zeros((BD,), ACC)
    tl.assume(last > split * chunk)
    for start in range(split * chunk, last, BM):
        rows = start + tl.arange(0, BM)
        left, right = products(
            x_ptr, weight_ptr, bias_ptr, rows, units, m, d, d_in,
            xm, xk, wn, wk, BM, BD, BK, EVEN_K, PRECISION, ACC,
        )  # fmt: skip
        dh = hidden_grad(
            dout_ptr, w_p_ptr, rows, units, last, d, d_out,
            gm, gn, pn, pd, BM, BD, BK, PRECISION, ACC,
        )  # fmt: skip
        x_at = x_ptr + rows[:, None] * xm + cols[None, :] * xk
        x = tl.load(x_at, mask=(rows < last)[:, None] & (cols < d_in)[None, :], other=0.0)
        d_left = left_gradient(dh, left, right, GATE)
        d_right = right_gradient(dh, left, GATE)
        if bias_partial_ptr is not None:
            sum_l += tl.sum(d_left, 0)
            sum_r += tl.sum(d_right, 0)
        d_left, d_right = tl.trans(d_left.to(x.dtype)), tl.trans(d_right.to(x.dtype))
        acc_l = tl.dot(d_left, x, acc_l, input_precision=PRECISION, out_dtype=ACC)
        acc_r = tl.dot(d_right, x, acc_r, input_precision=PRECISION, out_dtype=ACC)
    share = split * (2 * d)
    at = partial_ptr + (share + units)[:, None] * d_in + cols[None, :]
    inside = (units < d)[:, None] & (cols < d_in)[None, :]
    tl.store(at, acc_l, mask=inside)
    tl.store(at + d * d_in, acc_r, mask=inside)
    # The outer condition is decided when compiling, the inner when running.
    if bias_partial_ptr is not None:  # noqa: SIM102
        if pid_n == 0:
            tl.store(bias_partial_ptr + share + units, sum_l, mask=units < d)
            tl.store(bias_partial_ptr + share + d + units, sum_r, mask=units < d)


@triton.jit(do_not_specialize=["m", "chunk"])
def mlp_projection_kernel(
    dout_ptr, x_ptr, weight_ptr, bias_ptr, partial_ptr,
    m, d, d_in, d_out, chunk,
    stride_gm, stride_gn, stride_xm, stride_xk, stride_wn, stride_wk,
    BM: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    EVEN_K: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    GATE: tl.constexpr,
):  # fmt: skip
    """dW_pᵀ tile (BD, BN), summed over `chunk` rows.

    Each step forms h (BM, BD) and reads dout (BM, BN). Writes this chunk's share of dW_p
    (d_out, d).
    """
    wn, wk = widen(stride_wn, WIDE), widen(stride_wk, WIDE)
    gm, gn = widen(stride_gm, WIDE), widen(stride_gn, WIDE)
    xm, xk = widen(stride_xm, WIDE), widen(stride_xk, WIDE)
    n_d = tl.cdiv(d, BD)
    units = tl.program_id(0) % n_d * BD + tl.arange(0, BD)
    cols = tl.program_id(0) // n_d * BN + tl.arange(0, BN)
    split = tl.program_id(1)
    last = tl.minimum((split + 1) * chunk, m)
    acc = tl.zeros((BD, BN), ACC)
    tl.assume(last > split * chunk)
    for start in range(split * chunk, last, BM):
        rows = start + tl.arange(0, BM)
        left, right = products(
            x_ptr, weight_ptr, bias_ptr, rows, units, m, d, d_in,
            xm, xk, wn, wk, BM, BD, BK, EVEN_K, PRECISION, ACC,
        )  # fmt: skip
        dout_at = dout_ptr + rows[:, None] * gm + cols[None, :] * gn
        inside = (rows < last)[:, None] & (cols < d_out)[None, :]
        dout = tl.load(dout_at, mask=inside, other=0.0)
        # Rows past the last repeat it: as in `mlp_kernel`.
        h = tl.where((rows < last)[:, None], gated(left, GATE) * right, 0.0)
        h = tl.trans(h.to(dout.dtype))
        acc = tl.dot(h, dout, acc, input_precision=PRECISION, out_dtype=ACC)
    at = partial_ptr + split * (d_out * d) + cols[None, :] * d + units[:, None]
    tl.store(at, acc, mask=(units < d)[:, None] & (cols < d_out)[None, :])


@triton.jit(do_not_specialize=["m", "chunk"])
def mlp_backward_kernel(
    dout_ptr, x_ptr, weight_ptr, bias_ptr, w_p_ptr, dx_ptr, partial_ptr, bias_partial_ptr,
    w_p_partial_ptr,
    m, d, d_in, d_out, chunk,
    stride_gm, stride_gn, stride_xm, stride_xk, stride_wn, stride_wk, stride_pn, stride_pd,
    BM: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """Every gradient in one pass over x (BM, BK) and dout (BM, BN).

    BD, BK, BN cover all of d, d_in and d_out. One program walks `chunk` rows, keeps the weights
    and the sums of dW_l, dW_r (BD, BK) and dW_pᵀ (BD, BN) on the chip, and writes dx and its
    shares of the sums. A null pointer is a gradient that is not needed.
    """
    wn, wk = widen(stride_wn, WIDE), widen(stride_wk, WIDE)
    pn, pd = widen(stride_pn, WIDE), widen(stride_pd, WIDE)
    gm, gn = widen(stride_gm, WIDE), widen(stride_gn, WIDE)
    xm, xk = widen(stride_xm, WIDE), widen(stride_xk, WIDE)
    units = tl.arange(0, BD)
    ins = tl.arange(0, BK)
    outs = tl.arange(0, BN)
    weight_inside = (units < d)[:, None] & (ins < d_in)[None, :]
    weight_at = weight_ptr + units[:, None] * wn + ins[None, :] * wk
    w_l = tl.load(weight_at, mask=weight_inside, other=0.0)
    w_r = tl.load(weight_at + d * wn, mask=weight_inside, other=0.0)
    if bias_ptr is not None:
        b_l = tl.load(bias_ptr + units, mask=units < d, other=0.0)[None, :]
        b_r = tl.load(bias_ptr + d + units, mask=units < d, other=0.0)[None, :]
    split = tl.program_id(0)
    last = tl.minimum((split + 1) * chunk, m)
    acc_l = tl.zeros((BD, BK), ACC)
    acc_r = tl.zeros((BD, BK), ACC)
    acc_p = tl.zeros((BD, BN), ACC)
    sum_l = tl.zeros((BD,), ACC)
    sum_r = tl.zeros((BD,), ACC)
    if x_ptr.dtype.element_ty != tl.float32:  # without tensor cores it would spill
        tl.assume(last > split * chunk)
    for start in range(split * chunk, last, BM):
        rows = start + tl.arange(0, BM)
        row_inside = (rows < last)[:, None]
        x_at = x_ptr + rows[:, None] * xm + ins[None, :] * xk
        x = tl.load(x_at, mask=row_inside & (ins < d_in)[None, :], other=0.0)
        dout_at = dout_ptr + rows[:, None] * gm + outs[None, :] * gn
        dout = tl.load(dout_at, mask=row_inside & (outs < d_out)[None, :], other=0.0)
        left = tl.dot(x, tl.trans(w_l), input_precision=PRECISION, out_dtype=ACC)
        right = tl.dot(x, tl.trans(w_r), input_precision=PRECISION, out_dtype=ACC)
        if bias_ptr is not None:
            left += b_l
            right += b_r
        if w_p_partial_ptr is not None:
            h = tl.trans((gated(left, GATE) * right).to(x.dtype))
            acc_p = tl.dot(h, dout, acc_p, input_precision=PRECISION, out_dtype=ACC)
        if (dx_ptr is not None) or (partial_ptr is not None):
            w_p_at = w_p_ptr + outs[:, None] * pn + units[None, :] * pd
            w_p_inside = (outs < d_out)[:, None] & (units < d)[None, :]
            w_p = tl.load(w_p_at, mask=w_p_inside, other=0.0)
            dh = tl.dot(dout, w_p, input_precision=PRECISION, out_dtype=ACC)
            d_left = left_gradient(dh, left, right, GATE)
            d_right = right_gradient(dh, left, GATE)
            if bias_partial_ptr is not None:
                sum_l += tl.sum(d_left, 0)
                sum_r += tl.sum(d_right, 0)
            d_left, d_right = d_left.to(x.dtype), d_right.to(x.dtype)
            if dx_ptr is not None:
                dx = tl.dot(d_left, w_l, input_precision=PRECISION, out_dtype=ACC)
                dx = tl.dot(d_right, w_r, dx, input_precision=PRECISION, out_dtype=ACC)
                dx_at = dx_ptr + rows[:, None] * widen(d_in, WIDE) + ins[None, :]
                tl.store(dx_at, dx, mask=row_inside & (ins < d_in)[None, :])
            if partial_ptr is not None:
                d_left, d_right = tl.trans(d_left), tl.trans(d_right)
                acc_l = tl.dot(d_left, x, acc_l, input_precision=PRECISION, out_dtype=ACC)
                acc_r = tl.dot(d_right, x, acc_r, input_precision=PRECISION, out_dtype=ACC)
    share = split * (2 * d)
    if partial_ptr is not None:
        at = partial_ptr + (share + units)[:, None] * d_in + ins[None, :]
        tl.store(at, acc_l, mask=weight_inside)
        tl.store(at + d * d_in, acc_r, mask=weight_inside)
    if bias_partial_ptr is not None:
        tl.store(bias_partial_ptr + share + units, sum_l, mask=units < d)
        tl.store(bias_partial_ptr + share + d + units, sum_r, mask=units < d)
    if w_p_partial_ptr is not None:
        at = w_p_partial_ptr + split * (d_out * d) + outs[None, :] * d + units[:, None]
        tl.store(at, acc_p, mask=(units < d)[:, None] & (outs < d_out)[None, :])
