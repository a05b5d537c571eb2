"""The layer on torch's own matmuls, a block of rows at a time, with hand-derived gradients.

    dL = dh ∘ R    dR = dh ∘ L    dx = [dL, dR] W    dW = [dL, dR]ᵀ x

Rows are walked in blocks whose [L, R] stays in the cache, where that saves more traffic than
adding up dW once a block costs; otherwise all rows are one block. Blocks are summed in order, so
runs repeat bit for bit. Tensors in, tensors out: x (M, d_in); weight (2d, d_in); w_p (d_out, d).
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bilinear.layer.eager import Gradients

# Elements of [L, R] a thread: 4 MB of float32. Measured as fast as 1 MB, with a quarter of the
# barriers between threads, which are what hurts when other processes want the same cores.
_BLOCK_ELEMENTS = 2**20
# [L, R] smaller than this, in elements, is one block: the allocator hands its pages back warm.
_MIN_ELEMENTS = 2**21
# Deeper than this, the matmuls hide what blocks would save.
_MAX_D_IN = 256
_MIN_ROWS = 256


def block_rows(m: int, d_in: int, d: int, dtype: torch.dtype) -> int:
    """Rows of one block; all in half precision, where dW must be summed before it is rounded."""
    wide = dtype in (torch.float32, torch.float64)
    if 2 * d * m < _MIN_ELEMENTS or d_in > _MAX_D_IN or not wide:
        return max(1, m)
    return max(_MIN_ROWS, torch.get_num_threads() * _BLOCK_ELEMENTS // (2 * d))


def bilinear_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """h (M, d), and lr = [L, R] (M, 2d) if it is to be kept."""
    m, d = x.shape[0], weight.shape[0] // 2
    if block_rows(m, x.shape[1], d, x.dtype) >= m:
        whole = F.linear(x, weight, bias)
        left, right = whole.chunk(2, dim=-1)
        return left * right, whole if keep else None
    blocks = _blocks(x, weight)
    h = x.new_empty(m, d)
    lr = x.new_empty(m, 2 * d) if keep else None
    buffer = _buffer(lr, blocks, x, 2 * d)
    for rows in blocks:
        pair = _preact(x[rows], weight, bias, _part(lr, buffer, rows))
        torch.mul(pair[:, :d], pair[:, d:], out=h[rows])
    return h, lr


def bilinear_mlp_forward(
    x: Tensor,
    weight: Tensor,
    w_p: Tensor,
    bias: Tensor | None,
    b_p: Tensor | None,
    *,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """Out (M, d_out), and lr = [L, R] (M, 2d) if it is to be kept."""
    m, d = x.shape[0], weight.shape[0] // 2
    if block_rows(m, x.shape[1], d, x.dtype) >= m:
        whole = F.linear(x, weight, bias)
        left, right = whole.chunk(2, dim=-1)
        return F.linear(left * right, w_p, b_p), whole if keep else None
    blocks = _blocks(x, weight)
    out = x.new_empty(m, w_p.shape[0])
    lr = x.new_empty(m, 2 * d) if keep else None
    buffer = _buffer(lr, blocks, x, 2 * d)
    h = _buffer(None, blocks, x, d)
    for rows in blocks:
        pair = _preact(x[rows], weight, bias, _part(lr, buffer, rows))
        h_rows = torch.mul(pair[:, :d], pair[:, d:], out=_part(None, h, rows))
        _preact(h_rows, w_p, b_p, out[rows])
    return out, lr


def bilinear_backward(
    dh: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lr: Tensor | None,
    needs: Sequence[bool],
    *,
    spent: bool = False,
) -> Gradients:
    """Gradients of x, weight and bias that `needs` asks for; without lr it is formed again.

    lr may be overwritten if it is `spent`: of no use to anyone after this.
    """
    if 0 < x.shape[0] <= block_rows(x.shape[0], x.shape[1], weight.shape[0] // 2, x.dtype):
        whole = F.linear(x, weight, bias) if lr is None else lr
        left, right = whole.chunk(2, dim=-1)
        gradient = _whole_product_backward(dh, whole, left, right, spent=spent or lr is None)
        return _whole_gradients(gradient, x, weight, needs)
    sums = _Sums(x, weight, needs[0], needs[1], needs[2])
    blocks = _blocks(x, weight)
    pair = _buffer(lr, blocks, x, weight.shape[0])
    dlr = _buffer(None, blocks, x, weight.shape[0])
    for rows in blocks:
        pair_rows = _pair(x, weight, bias, lr, pair, rows)
        sums.add(rows, _product_backward(dh[rows], pair_rows, _part(None, dlr, rows)))
    return sums.dx, sums.dweight, sums.dbias


def bilinear_mlp_backward(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    w_p: Tensor,
    bias: Tensor | None,
    lr: Tensor | None,
    needs: Sequence[bool],
    *,
    spent: bool = False,
) -> Gradients:
    """Gradients of x, weight, w_p, bias and b_p that `needs` asks for; see `bilinear_backward`."""
    d = w_p.shape[1]
    if 0 < x.shape[0] <= block_rows(x.shape[0], x.shape[1], d, x.dtype):
        return _whole_mlp_gradients(dout, x, weight, w_p, bias, lr, needs, spent=spent)
    inner = needs[0] or needs[1] or needs[3]
    sums = _Sums(x, weight, needs[0], needs[1], needs[3])
    dw_p = _zeros_like(w_p) if needs[2] else None
    blocks = _blocks(x, weight) if inner or needs[2] else []
    pair = _buffer(lr, blocks, x, 2 * d)
    dlr = _buffer(None, blocks, x, 2 * d) if inner else None
    half = _buffer(None, blocks, x, d)
    for rows in blocks:
        pair_rows = _pair(x, weight, bias, lr, pair, rows)
        half_rows = _part(None, half, rows)
        if dw_p is not None:
            h = torch.mul(pair_rows[:, :d], pair_rows[:, d:], out=half_rows)
            _add_product(dw_p, dout[rows], h, first=rows.start == 0)
        if dlr is not None:
            dh = torch.mm(dout[rows], w_p, out=half_rows)
            sums.add(rows, _product_backward(dh, pair_rows, _part(None, dlr, rows)))
    return sums.dx, sums.dweight, dw_p, sums.dbias, dout.sum(0) if needs[4] else None


def _whole_gradients(dlr: Tensor, x: Tensor, weight: Tensor, needs: Sequence[bool]) -> Gradients:
    return (
        torch.mm(dlr, weight) if needs[0] else None,
        torch.mm(dlr.t(), x) if needs[1] else None,
        dlr.sum(0) if needs[2] else None,
    )


def _whole_mlp_gradients(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    w_p: Tensor,
    bias: Tensor | None,
    lr: Tensor | None,
    needs: Sequence[bool],
    *,
    spent: bool,
) -> Gradients:
    dx = dweight = dw_p = dbias = None
    inner = needs[0] or needs[1] or needs[3]
    if inner or needs[2]:
        whole = F.linear(x, weight, bias) if lr is None else lr
        left, right = whole.chunk(2, dim=-1)
    if needs[2]:
        dw_p = torch.mm(dout.t(), left * right)
    if inner:
        dh = torch.mm(dout, w_p)
        dlr = _whole_product_backward(dh, whole, left, right, spent=spent or lr is None)
        del dh  # not alive beside dx
        dx, dweight, dbias = _whole_gradients(dlr, x, weight, (needs[0], needs[1], needs[3]))
    return dx, dweight, dw_p, dbias, dout.sum(0) if needs[4] else None


def _whole_product_backward(
    dh: Tensor, whole: Tensor, left: Tensor, right: Tensor, *, spent: bool
) -> Tensor:
    """[dL, dR], over [L, R] itself if that is spent."""
    dleft = dh * right
    if not spent:
        return torch.cat((dleft, dh * left), dim=-1)
    torch.mul(dh, left, out=right)
    left.copy_(dleft)
    return whole


class _Sums:
    """Gradients of x, weight and bias, gathered from blocks of [dL, dR]."""

    def __init__(self, x: Tensor, weight: Tensor, dx: bool, dweight: bool, dbias: bool) -> None:
        self.x, self.weight = x, weight
        self.dx = x.new_empty(x.shape) if dx else None
        self.dweight = _zeros_like(weight) if dweight else None
        self.dbias: Tensor | None = weight.new_zeros(weight.shape[0]) if dbias else None

    def add(self, rows: slice, dlr: Tensor) -> None:
        if self.dx is not None:
            torch.mm(dlr, self.weight, out=self.dx[rows])
        if self.dweight is not None:
            _add_product(self.dweight, dlr, self.x[rows], first=rows.start == 0)
        if self.dbias is not None:
            self.dbias = dlr.sum(0) if rows.start == 0 else self.dbias.add_(dlr.sum(0))


def _blocks(x: Tensor, weight: Tensor) -> list[slice]:
    return list(
        _slices(x.shape[0], block_rows(x.shape[0], x.shape[1], weight.shape[0] // 2, x.dtype))
    )


def _slices(m: int, rows: int) -> Iterator[slice]:
    for start in range(0, m, rows):
        yield slice(start, min(m, start + rows))


def _buffer(whole: Tensor | None, blocks: list[slice], like: Tensor, columns: int) -> Tensor | None:
    if whole is not None:
        return None
    return like.new_empty(blocks[0].stop if blocks else 0, columns)


def _part(whole: Tensor | None, buffer: Tensor | None, rows: slice) -> Tensor:
    if whole is not None:
        return whole[rows]
    assert buffer is not None
    return buffer[: rows.stop - rows.start]


def _pair(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lr: Tensor | None,
    buffer: Tensor | None,
    rows: slice,
) -> Tensor:
    if lr is not None:
        return lr[rows]
    return _preact(x[rows], weight, bias, _part(None, buffer, rows))


def _preact(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)


def _product_backward(dh: Tensor, pair: Tensor, out: Tensor) -> Tensor:
    d = dh.shape[1]
    torch.mul(dh, pair[:, d:], out=out[:, :d])
    torch.mul(dh, pair[:, :d], out=out[:, d:])
    return out


def _add_product(total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    if first:
        torch.mm(a.t(), b, out=total)
    else:
        total.addmm_(a.t(), b)


def _zeros_like(weight: Tensor) -> Tensor:
    return weight.new_zeros(weight.shape)
