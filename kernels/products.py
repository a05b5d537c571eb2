"""Device functions that the dual and the mlp kernels share.

Tiles: L, R, dh are (BM, BD), rows of x by hidden units. Rows and units outside the problem are
clamped to the last one where that only repeats work, and read as zero where they enter a sum.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def widen(value, WIDE: tl.constexpr):
    """`value` as a 64-bit integer where 32 bits don't reach: strides, so that offsets follow."""
    if WIDE:
        return tl.cast(value, tl.int64)
    else:
        return value


@triton.jit
def tile_order(pid, n_m, n_n, GROUP: tl.constexpr):
    """(row block, column block) of a program: GROUP row blocks share a column's operand in L2."""
    in_group = GROUP * n_n
    first = pid // in_group * GROUP
    height = tl.minimum(n_m - first, GROUP)
    return first + pid % in_group % height, pid % in_group // height


@triton.jit
def products(
    x_ptr, weight_ptr, bias_ptr,
    rows, units, m, d, d_in,
    stride_xm, stride_xk, stride_wn, stride_wk,
    BM: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr, EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """L and R of one tile, one pass over x: each step's x tile feeds both products."""
    ks = tl.arange(0, BK)
    unit = tl.minimum(units, d - 1)
    x_at = x_ptr + tl.minimum(rows, m - 1)[:, None] * stride_xm + ks[None, :] * stride_xk
    w_l_at = weight_ptr + unit[None, :] * stride_wn + ks[:, None] * stride_wk
    w_r_at = weight_ptr + (unit + d)[None, :] * stride_wn + ks[:, None] * stride_wk
    left = tl.zeros((BM, BD), ACC)
    right = tl.zeros((BM, BD), ACC)
    # A loop that may not run at all has ptxas wait for each wgmma of it (C7515).
    tl.assume(d_in > 0)
    for k in range(0, d_in, BK):
        if EVEN_K:
            x, w_l, w_r = tl.load(x_at), tl.load(w_l_at), tl.load(w_r_at)
        else:
            inside = ks < d_in - k
            x = tl.load(x_at, mask=inside[None, :], other=0.0)
            w_l = tl.load(w_l_at, mask=inside[:, None], other=0.0)
            w_r = tl.load(w_r_at, mask=inside[:, None], other=0.0)
        left = tl.dot(x, w_l, left, input_precision=PRECISION, out_dtype=ACC)
        right = tl.dot(x, w_r, right, input_precision=PRECISION, out_dtype=ACC)
        x_at += BK * stride_xk
        w_l_at += BK * stride_wk
        w_r_at += BK * stride_wk
    if bias_ptr is not None:
        left += tl.load(bias_ptr + unit)[None, :]
        right += tl.load(bias_ptr + unit + d)[None, :]
    return left, right


@triton.jit
def hidden_grad(
    dout_ptr, w_p_ptr,
    rows, units, last, d, d_out,
    stride_gm, stride_gn, stride_pn, stride_pd,
    BM: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """dh = dout W_p of one tile; zero for rows from `last` on and for units from d on."""
    ks = tl.arange(0, BK)
    dout_at = dout_ptr + rows[:, None] * stride_gm + ks[None, :] * stride_gn
    w_p_at = w_p_ptr + ks[:, None] * stride_pn + units[None, :] * stride_pd
    dh = tl.zeros((BM, BD), ACC)
    tl.assume(d_out > 0)
    for k in range(0, d_out, BK):
        inside = ks < d_out - k
        dout = tl.load(dout_at, mask=(rows < last)[:, None] & inside[None, :], other=0.0)
        w_p = tl.load(w_p_at, mask=inside[:, None] & (units < d)[None, :], other=0.0)
        dh = tl.dot(dout, w_p, dh, input_precision=PRECISION, out_dtype=ACC)
        dout_at += BK * stride_gn
        w_p_at += BK * stride_pn
    return dh
