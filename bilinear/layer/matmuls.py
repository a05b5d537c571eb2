"""The layer on torch's own matmuls, with hand-derived gradients.

    dh = dout W_p     dW_p = doutᵀ h     dL = dh ∘ R ∘ g′(L)     dR = dh ∘ g(L)
    dx = [dL, dR] W   dW = [dL, dR]ᵀ x   db, db_p = column sums

On the CPU rows are walked in blocks whose [L, R] stays in the cache, where that saves more traffic
than adding to dW once a block costs. Blocks are summed in order, and their size depends on the
shape alone, so runs repeat bit for bit on any number of threads.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bilinear.layer.call import TRACED, TRANSFORMED, Call, Detail, Gradients
from bilinear.layer.gates import product, product_backward

NAME = "matmuls"
# Without a projection the layer saves as much for backward as eager does. With fewer elements of x
# and [L, R] than this (4 MB of float32), which stay in the cache, it isn't faster either: calling
# its Function costs what it saves.
SMALL = 2**20
# Elements of [L, R] in a block: 8 MB of float32.
_BLOCK_ELEMENTS = 2**21
# For d_in above this the matmuls dominate; blocks gain nothing.
_MAX_D_IN = 256
_MIN_ROWS = 256
# From so many elements on (with a gate: always), dL and dR are written into the halves of one
# tensor, not concatenated: a third less memory at the peak of backward, for 2 µs more Python.
_WRITTEN_TO_HALVES = 2**16


def refusal(call: Call) -> str:
    """See `call.Implementation`."""
    if call.context == TRANSFORMED:
        return "torch.func, forward mode and tensor subclasses follow torch's own operations alone"
    if (
        call.m * (call.d_in + 2 * call.d) < SMALL
        and call.d_out is None
        and not call.recompute
        and call.context != TRACED
        and call.device.type == "cpu"
    ):
        return f"fewer than {SMALL} elements don't pay for an autograd Function"
    return ""


def saves_preact(call: Call) -> bool:
    """See `call.Implementation`."""
    return not call.recompute


def block_rows(call: Call) -> int:
    """Rows of one block; all in half precision, where dW must be summed before it is rounded."""
    if (
        2 * call.d * call.m <= _BLOCK_ELEMENTS
        or call.d_in > _MAX_D_IN
        or call.device.type != "cpu"
        or call.dtype not in (torch.float32, torch.float64)
    ):
        return call.m
    return max(_MIN_ROWS, _BLOCK_ELEMENTS // (2 * call.d))


def detail(call: Call, direction: str) -> Detail:
    """See `call.Implementation`."""
    block = block_rows(call)
    if block >= call.m:
        return Detail("", None, f"torch's matmuls over all {call.m} rows at once")
    why = f"torch's matmuls over {block} rows at a time, whose [L, R] stays in the cache"
    return Detail("", None, why)


def forward(
    call: Call,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    w_p: Tensor | None,
    b_p: Tensor | None,
    *,
    save_preact: bool,
) -> tuple[Tensor, Tensor | None]:
    """See `call.Implementation`."""
    block = block_rows(call)
    if block >= call.m:
        preact = _linear(x, weight, bias)
        left, right = preact.chunk(2, 1)
        h = product(left, right, call.gate, _to_write(left, call))
        out = h if w_p is None else _linear(h, w_p, b_p)
        return out, preact if save_preact else None
    out = x.new_empty(call.m, call.d_out or call.d)
    saved = x.new_empty(call.m, 2 * call.d) if save_preact else None
    scratch = x.new_empty(block, 2 * call.d) if saved is None else None
    h_scratch = None if w_p is None else x.new_empty(block, call.d)
    for rows in _blocks(call.m, block):
        preact = _linear(x[rows], weight, bias, _part(saved, scratch, rows))
        left, right = preact.chunk(2, 1)
        if w_p is None:
            product(left, right, call.gate, out[rows])
        else:
            h = product(left, right, call.gate, _part(None, h_scratch, rows))
            _linear(h, w_p, b_p, out[rows])
    return out, saved


def backward(
    call: Call,
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    w_p: Tensor | None,
    preact: Tensor | None,
    needs: Sequence[bool],
) -> Gradients:
    """See `call.Implementation`."""
    dx = dweight = dbias = dw_p = None
    inner = needs[0] or needs[1] or needs[2]
    block = block_rows(call)
    if block >= call.m:
        if not (inner or needs[3]):
            return None, None, None, None, dout.sum(0) if needs[4] else None
        preact = _linear(x, weight, bias) if preact is None else preact
        left, right = preact.chunk(2, 1)
        if needs[3]:
            h = product(left, right, call.gate, _to_write(left, call))
            dw_p = torch.mm(dout.t(), h)
            del h
        if inner:
            dh = dout if w_p is None else torch.mm(dout, w_p)
            whole = call.gate == "identity" and preact.numel() < _WRITTEN_TO_HALVES
            out = None if whole else torch.empty_like(preact)
            dpreact = product_backward(dh, left, right, call.gate, out)
            del preact, left, right, dh  # not alive beside dx
            dx = torch.mm(dpreact, weight) if needs[0] else None
            dweight = torch.mm(dpreact.t(), x) if needs[1] else None
            dbias = dpreact.sum(0) if needs[2] else None
        return dx, dweight, dbias, dw_p, dout.sum(0) if needs[4] else None
    dx = x.new_empty(x.shape) if needs[0] else None
    scratch = x.new_empty(block, 2 * call.d) if preact is None else None
    half_scratch = None if w_p is None else x.new_empty(block, call.d)
    dpreact_scratch = x.new_empty(block, 2 * call.d)
    for rows in _blocks(call.m, block) if inner or needs[3] else ():
        x_rows, dout_rows = x[rows], dout[rows]
        here = _part(preact, scratch, rows)
        if preact is None:
            _linear(x_rows, weight, bias, here)
        left, right = here.chunk(2, 1)
        dh = dout_rows
        if w_p is not None:
            half = _part(None, half_scratch, rows)
            if needs[3]:
                dw_p = _add_mm(dw_p, dout_rows.t(), product(left, right, call.gate, half))
            dh = torch.mm(dout_rows, w_p, out=half) if inner else dh
        if inner:
            dpreact = _part(None, dpreact_scratch, rows)
            product_backward(dh, left, right, call.gate, dpreact)
            if dx is not None:
                torch.mm(dpreact, weight, out=dx[rows])
            if needs[1]:
                dweight = _add_mm(dweight, dpreact.t(), x_rows)
            if needs[2]:
                sums = dpreact.sum(0)
                dbias = sums if dbias is None else dbias.add_(sums)
    return dx, dweight, dbias, dw_p, dout.sum(0) if needs[4] else None


def _to_write(left: Tensor, call: Call) -> Tensor | None:
    """Memory for h where g(L) would be a tensor of its own beside it."""
    return None if call.gate == "identity" else left.new_empty(left.shape)


def _blocks(m: int, block: int) -> list[slice]:
    return [slice(start, min(m, start + block)) for start in range(0, m, block)]


def _part(whole: Tensor | None, scratch: Tensor | None, rows: slice) -> Tensor:
    """The rows of a whole tensor, or as many of a block's scratch memory."""
    if whole is not None:
        return whole[rows]
    assert scratch is not None
    return scratch[: rows.stop - rows.start]


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """F.linear on rows, which takes longer to reach the matmul; so does `out`, even if None."""
    if out is None:
        return torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)


def _add_mm(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    return torch.mm(a, b) if total is None else total.addmm_(a, b)
