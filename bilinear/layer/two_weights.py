"""The MLP of two weights in memory of their own, as Llama-family models keep them.

    out = (g(x W_lᵀ + b_l) ∘ (x W_rᵀ + b_r)) W_pᵀ + b_p

Two matmuls take the place of one over [W_l; W_r], which would be copied together at every call: on
few rows, as text is generated, that costs more than the matmul. They are packed only for operators
that a compiler is to see whole, for Triton's kernels where these save more traffic than the copy
makes, and for the compiled CPU layer where it gains more than the copy costs. On few rows torch's
own operations are called one by one: nothing else costs as little.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bilinear.kernels import layer_cpu
from bilinear.kernels.places import are_plain
from bilinear.layer import eager, native, triton_kernels
from bilinear.layer.call import PLAIN, TRACED, TRANSFORMED, Call
from bilinear.layer.checks import check_unchanged
from bilinear.layer.context import autocast, context_of, context_of_gradient
from bilinear.layer.functional import bilinear_mlp
from bilinear.layer.gates import GATES, product
from bilinear.layer.matmuls import hidden
from bilinear.layer.select import select

# Up to this many elements of h a Function's overhead exceeds what it saves.
FEW = 2**16
# The compiled CPU layer takes a copy of the weights each way, as none is kept between the two. They
# take as long as the products of so many rows do by torch's matmuls, in float32; less in 16 bits.
COPIED_ROWS = 50
# (L, R), or ([L, R],).
Halves = tuple[Tensor, ...]


def gated_mlp(
    x: Tensor,
    w_l: Tensor,
    b_l: Tensor | None,
    w_r: Tensor,
    b_r: Tensor | None,
    w_p: Tensor,
    b_p: Tensor | None,
    recompute: bool,
    gate: str,
    undisturbed: bool,
) -> Tensor:
    """`functional.bilinear_mlp` for W_l and W_r (d, d_in), b_l and b_r (d,) apart.

    `undisturbed` is `context.is_undisturbed()`.
    """
    if (
        undisturbed
        and not recompute
        and x.numel() * w_l.shape[0] <= FEW * w_l.shape[1]
        # Asked of those alone for which it may be so, because it takes microseconds.
        and not (x.itemsize == 2 and x.is_cpu and is_compiled(_call(x, w_l, w_p, gate)))
    ):
        h = GATES[gate].g(F.linear(x, w_l, b_l)) * F.linear(x, w_r, b_r)
        return F.linear(h, w_p, b_p)
    given = x, w_l, b_l, w_r, b_r, w_p, b_p
    needs = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    # The most common case is tested first: the full test takes as long as a small matmul.
    plain = undisturbed and are_plain(*given)
    context = PLAIN if plain else context_of(*given)
    call = _call(x, w_l, w_p, gate)._replace(recompute=recompute, context=context)
    if is_packed(call, needs):
        packed, bias = _packed(w_l, b_l, w_r, b_r)
        return bilinear_mlp(x, packed, w_p, bias, b_p=b_p, recompute=recompute, gate=gate)
    x, w_l, b_l, w_r, b_r, w_p, b_p = given if plain else autocast(*given)
    call = call._replace(dtype=x.dtype)
    if context == PLAIN and needs:
        out: Tensor = TwoWeights.apply(x, w_l, b_l, w_r, b_r, w_p, b_p, call)
        return out
    if context != PLAIN:
        h = product(F.linear(x, w_l, b_l), F.linear(x, w_r, b_r), gate)
        return F.linear(h, w_p, b_p)
    rows = x.reshape(-1, call.d_in)
    if is_compiled(call):
        packed, bias = _packed(w_l, b_l, w_r, b_r)
        out, _ = native.forward(call, rows, packed, bias, w_p, b_p, save_preact=False)
    else:
        h = _h((F.linear(rows, w_l, b_l), F.linear(rows, w_r, b_r)), gate, into_left=True)
        out = F.linear(h, w_p, b_p)
    return out.view(*x.shape[:-1], out.shape[1])


def _call(x: Tensor, w_l: Tensor, w_p: Tensor, gate: str) -> Call:
    d, d_in = w_l.shape
    return Call(x.numel() // max(d_in, 1), d_in, d, w_p.shape[0], x.dtype, x.device, gate=gate)


def is_packed(call: Call, needs_gradients: bool) -> bool:
    """Whether both weights are copied together, for whatever takes them packed."""
    on_kernels = call.device.type == "cuda" or triton_kernels.INTERPRETED
    if call.context == TRACED:  # call.m may be a symbol here, so nothing compares it
        return needs_gradients or on_kernels
    if call.context == TRANSFORMED or not on_kernels or triton_kernels.refusal(call):
        return False
    copied, saved = _traffic(call, needs_gradients)
    return copied < saved


def is_few(call: Call) -> bool:
    """Whether a call is made of torch's own operations, one by one."""
    is_small = call.context == PLAIN and not call.recompute and call.m * call.d <= FEW
    return is_small and not (call.dtype.itemsize == 2 and is_compiled(call))


def is_compiled(call: Call) -> bool:
    """Whether a call that is not few runs in the compiled CPU layer, by a copy for each way."""
    if call.context != PLAIN or select(call) is not native:
        return False
    row = native.nearest(call)
    return row is not None and row.times_faster >= 1 + COPIED_ROWS / max(call.m, 1)


def _packed(
    w_l: Tensor, b_l: Tensor | None, w_r: Tensor, b_r: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """(weight (2d, d_in), bias (2d,)): copies."""
    bias = None if b_l is None or b_r is None else torch.cat((b_l, b_r))
    return torch.cat((w_l, w_r)), bias


def _traffic(call: Call, needs_gradients: bool) -> tuple[int, int]:
    """Elements that packing moves, and those that the kernels for a packed weight save.

    They read x once where two products read it twice, and in backward x once for dW and dx written
    once where two products read x twice, write dx, read it and write it again. The dual kernel
    reads neither L nor R again and writes them only to be saved; that of the MLP leaves h on chip.
    """
    kernel = triton_kernels.detail(call, "forward").kernel
    is_saved = needs_gradients and not call.recompute
    on_chip = {"pointwise": 0, "dual": 2 if is_saved else 4, "mlp": 6}[kernel]
    of_x = 4 if needs_gradients else 1
    return 4 * call.d * call.d_in, call.m * (of_x * call.d_in + on_chip * call.d)


def detail(call: Call, needs_gradients: bool) -> str:
    """What `explain` says of how the two weights are taken."""
    packed = is_packed(call, needs_gradients)
    if call.context == TRACED and packed:
        return "W_l and W_r are packed at every call, a copy of both"
    if is_few(call):
        return f"torch's own operations, one by one: h has at most {FEW} elements"
    if is_compiled(call):
        return "W_l and W_r are packed each way, a copy of both that is not kept between the two"
    if call.context == PLAIN and (call.device.type == "cuda" or triton_kernels.INTERPRETED):
        copied, saved = (n * call.dtype.itemsize / 1e6 for n in _traffic(call, needs_gradients))
        cost = f"the copy moves {copied:.3g} MB, and would save {saved:.3g} MB"
        if packed:
            return f"W_l and W_r are packed at every call: {cost.replace('would save', 'saves')}"
        return f"W_l and W_r take a matmul each: {cost}"
    return "W_l and W_r take a matmul each: to pack them would copy both at every call"


def _halves(x: Tensor, w_l: Tensor, b_l: Tensor | None, w_r: Tensor, b_r: Tensor | None) -> Halves:
    """(L, R) of x (m, d_in); [L, R] (m, 2d) alone where a kernel takes both."""
    if not _has_kernels(x):
        return F.linear(x, w_l, b_l), F.linear(x, w_r, b_r)
    preact = x.new_empty(x.shape[0], 2 * w_l.shape[0])
    left, right = preact.chunk(2, 1)
    for half, weight, bias in ((left, w_l, b_l), (right, w_r, b_r)):
        if bias is None:
            torch.mm(x, weight.t(), out=half)
        else:
            torch.addmm(bias, x, weight.t(), out=half)
    return (preact,)


def _has_kernels(x: Tensor) -> bool:
    """Whether elementwise work on x runs as one kernel of ours."""
    call = Call(x.shape[0], x.shape[1], 1, 1, x.dtype, x.device)
    return (x.is_cuda or triton_kernels.INTERPRETED) and not triton_kernels.refusal(call)


def _h(halves: Halves, gate: str, into_left: bool = False) -> Tensor:
    """g(L) ∘ R without memory for both factors."""
    if len(halves) == 1:
        from bilinear.kernels import pointwise

        return pointwise.product_forward(halves[0], gate)
    left, right = halves
    return hidden(left, right, gate, into_left=into_left)


class TwoWeights(torch.autograd.Function):
    """Saves x, the weights, and L and R unless `recompute`; never h or g(L)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w_l: Tensor,
        b_l: Tensor | None,
        w_r: Tensor,
        b_r: Tensor | None,
        w_p: Tensor,
        b_p: Tensor | None,
        call: Call,
    ) -> Tensor:
        """Out (…, d_out)."""
        rows = x.reshape(-1, x.shape[-1])
        ctx.call, ctx.compiled, saved = call, is_compiled(call), not call.recompute
        halves: Halves
        if ctx.compiled:
            packed = _packed(w_l, b_l, w_r, b_r)
            out, preact = native.forward(call, rows, *packed, w_p, b_p, save_preact=saved)
            halves = () if preact is None else (preact,)
        else:
            halves = _halves(rows, w_l, b_l, w_r, b_r)
            out = F.linear(_h(halves, call.gate, into_left=not saved), w_p, b_p)
        kept: tuple[Tensor | None, Tensor | None] = w_l, w_r
        ctx.free = None
        if saved and not x.requires_grad:
            # Only a second derivative needs these weights, so they may change in place before
            # backward, as under torch's own autograd.
            ctx.free, kept = (w_l, w_r, w_l._version, w_r._version), (None, None)
        ctx.save_for_backward(x, kept[0], b_l, kept[1], b_r, w_p, *(halves if saved else ()))
        return out.view(*x.shape[:-1], w_p.shape[0])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of forward's arguments, in their order."""
        x, w_l, b_l, w_r, b_r, w_p, *halves = ctx.saved_tensors
        needs, gate = ctx.needs_input_grad, ctx.call.gate
        rows = x.reshape(-1, x.shape[-1])
        dout = grad_outputs[0].reshape(-1, w_p.shape[0])
        context = context_of_gradient(grad_outputs[0])
        if ctx.free is not None:
            w_l, w_r, *versions = ctx.free
            if context == TRANSFORMED:
                check_unchanged(w_l, versions[0])
                check_unchanged(w_r, versions[1])
        if context == TRANSFORMED or (context == PLAIN and ctx.compiled):
            packed = _packed(w_l, b_l, w_r, b_r)
            if context == TRANSFORMED:
                found = _differentiable(dout, rows, *packed, w_p, gate)
            else:
                some = needs[0], needs[1] or needs[3], needs[2] or needs[4], needs[5], needs[6]
                preact = halves.pop() if halves else None
                found = native.backward(ctx.call, dout, rows, *packed, w_p, preact, needs=some)
            dx, dweight, dbias, dw_p, db_p = found
            dx = None if dx is None else dx.view(x.shape)
            dw_l, dw_r = (None, None) if dweight is None else dweight.chunk(2)
            db_l, db_r = (None, None) if dbias is None or b_l is None else dbias.chunk(2)
            return dx, dw_l, db_l, dw_r, db_r, dw_p, db_p, None
        if ctx.compiled and halves:  # a compiler traces this backward
            halves = halves[0].chunk(2, 1)
        halves = tuple(halves) or _halves(rows, w_l, b_l, w_r, b_r)
        db_p = dout.sum(0) if needs[6] else None
        dw_p = dout.t() @ _h(halves, gate) if needs[5] else None
        dx = dw_l = dw_r = db_l = db_r = None
        if any(needs[:5]):
            dleft, dright = _halves_backward(dout @ w_p, halves, gate)
            del halves
            dw_l = dleft.t() @ rows if needs[1] else None
            dw_r = dright.t() @ rows if needs[3] else None
            db_l = dleft.sum(0) if needs[2] else None
            db_r = dright.sum(0) if needs[4] else None
            if needs[0]:
                dx = torch.addmm(dleft @ w_l, dright, w_r).view(x.shape)
        return dx, dw_l, db_l, dw_r, db_r, dw_p, db_p, None


def _differentiable(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, w_p: Tensor, gate: str
) -> tuple[Any, ...]:
    """All gradients, by operations that can be differentiated again."""
    sizes = x.shape[0], x.shape[1], w_p.shape[1], w_p.shape[0]
    call = Call(*sizes, x.dtype, x.device, gate=gate, context=TRANSFORMED)
    return eager.backward(call, dout, x, weight, bias, w_p, None, needs=(True,) * 5)


def _halves_backward(dh: Tensor, halves: Halves, gate: str) -> tuple[Tensor, Tensor]:
    """(dL, dR) for dh (m, d), L and R; dh is written to."""
    if len(halves) == 1:
        from bilinear.kernels import pointwise

        dpreact, _ = pointwise.product_backward(dh, halves[0], gate)
        dleft, dright = dpreact.chunk(2, 1)
        return dleft, dright
    left, right = halves
    if layer_cpu.has_pointwise(left.device, left.dtype):
        return dh, layer_cpu.product_backward(dh, left, right, gate=gate, into_dh="dleft")
    dright = product(left, dh, gate, torch.empty_like(dh))
    dleft = dh.mul_(right)
    if gate != "identity":
        GATES[gate].backward_out(dleft, left, dleft)
    return dleft, dright
