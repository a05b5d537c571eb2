"""The bilinear layer as functions, with gradients of its own.

A call that needs gradients runs an autograd Function, which saves less than torch's own operations
would and computes the rest again in backward. Where a Function cannot follow, the same algebra runs
as plain torch operations (`eager`), and is exact there too: `torch.func` transforms, forward mode,
tensor subclasses such as DTensor, and gradients taken with `create_graph=True`.
"""

from typing import Any

import torch
from torch import Tensor

from bilinear.kernels.places import are_plain, signature
from bilinear.layer import custom_ops, eager
from bilinear.layer.call import PLAIN, TRANSFORMED, Gradients, Saved
from bilinear.layer.checks import check, check_unchanged
from bilinear.layer.context import (
    autocast,
    context_of,
    context_of_gradient,
    is_undisturbed,
    is_undisturbed_backward,
)
from bilinear.layer.gates import gate_name
from bilinear.layer.rows import as_rows, of_shape
from bilinear.layer.select import Chosen, choose, describe


def bilinear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    recompute: bool = False,
    gate: object = "identity",
) -> Tensor:
    """h = g(x W_lᵀ + b_l) ∘ (x W_rᵀ + b_r).

    x (…, d_in), of any strides; weight (2d, d_in) and bias (2d,), left half first. Returns (…, d).
    `gate` is g: "identity", "silu", "gelu", "gelu_tanh", "relu", "sigmoid" or "relu2" (relu
    squared), or torch's function or module (`F.silu`, `nn.GELU("tanh")`).
    Saved for backward: x, the weights and [L, R] (2d numbers a row); with `recompute`, x and the
    weights alone, for one more matmul in backward, and then the weights must not change in place
    before backward (torch raises), as they may otherwise where x needs no gradient. Under autocast
    all are cast as `F.linear` casts them; otherwise dtypes and devices must be equal.

    Raises:
        TypeError: an argument is no tensor, or the dtypes differ or are not floating.
        ValueError: a shape or a device doesn't fit, or the gate is none of these.
    """
    return _layer(x, weight, bias, None, None, recompute, gate)


def bilinear_mlp(
    x: Tensor,
    weight: Tensor,
    w_p: Tensor,
    bias: Tensor | None = None,
    b_p: Tensor | None = None,
    *,
    recompute: bool = False,
    gate: object = "identity",
) -> Tensor:
    """out = (g(x W_lᵀ + b_l) ∘ (x W_rᵀ + b_r)) W_pᵀ + b_p.

    x (…, d_in), of any strides; weight (2d, d_in) and bias (2d,), left half first; w_p (d_out, d);
    b_p (d_out,). Returns (…, d_out). h is never saved: it is formed again from [L, R], which is
    saved with x and the weights; with `recompute`, x and the weights alone. Where one kernel does
    the whole MLP, [L, R] is not saved either way. `gate` is that of `bilinear`.

    Raises:
        TypeError: an argument is no tensor, or the dtypes differ or are not floating.
        ValueError: a shape or a device doesn't fit, or the gate is unknown.
    """
    if w_p is None:
        raise TypeError("w_p: expected a tensor, got NoneType")
    return _layer(x, weight, bias, w_p, b_p, recompute, gate)


def _layer(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    w_p: Tensor | None,
    b_p: Tensor | None,
    recompute: bool,
    given_gate: object,
) -> Tensor:
    gate = given_gate if type(given_gate) is str else gate_name(given_gate)
    chosen = choose(x, weight, bias, w_p, b_p, recompute, gate) if is_undisturbed() else None
    if chosen is None:
        gate_name(gate)  # raises for an unknown name, which no chosen call has
        x, weight, bias, w_p, b_p = autocast(x, weight, bias, w_p, b_p)
        check(x, weight, bias, w_p, b_p)
        context = context_of(x, weight, bias, w_p, b_p)
        if context == TRANSFORMED:
            return eager.compose(x, weight, bias, w_p, b_p, gate=gate)
        if context == PLAIN:
            chosen = choose(x, weight, bias, w_p, b_p, recompute, gate)
    if chosen is not None and chosen.implementation is eager:
        return eager.compose(x, weight, bias, w_p, b_p, gate=gate)
    if torch.is_grad_enabled() and (
        x.requires_grad
        or weight.requires_grad
        or (bias is not None and bias.requires_grad)
        or (w_p is not None and w_p.requires_grad)
        or (b_p is not None and b_p.requires_grad)
    ):
        apply = BilinearFunction.apply if chosen is None else _apply_to_plain
        result: Tensor = apply(x, weight, bias, w_p, b_p, (chosen, recompute, gate))
        return result
    if chosen is not None:
        run = chosen.forwards.get(False)
        run = run or chosen.ready_forward(False, x, weight, bias, w_p, b_p)
        return run(x, weight, bias, w_p, b_p)[0]
    (out,) = custom_ops.forward(as_rows(x), weight, bias, w_p, b_p, False, gate)
    return of_shape(out, x.shape)


class BilinearFunction(torch.autograd.Function):
    """The layer with saved tensors of its own: x, the weights, and [L, R] if need be; never h."""

    # One step, without `setup_context`: [L, R] then need not be an output, and the call costs half
    # as much. `torch.func` needs the other form, but its calls run `eager` and not this Function.
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        w_p: Tensor | None,
        b_p: Tensor | None,
        how: tuple[Chosen | None, bool, str],
    ) -> Tensor:
        """Out (…, d_out), or h (…, d); see `bilinear_mlp`.

        `how` is what runs the call, `recompute` and the gate. Nothing is chosen where operators are
        watched: the registered ones are called then.
        """
        chosen, recompute, gate = how
        preact: Tensor | None
        if chosen is not None:
            run = chosen.forwards.get(True)
            run = run or chosen.ready_forward(True, x, weight, bias, w_p, b_p)
            out, preact = run(x, weight, bias, w_p, b_p)
        else:
            saves = custom_ops.saves_preact(x, weight, w_p, recompute, gate)
            out, *saved = custom_ops.forward(as_rows(x), weight, bias, w_p, b_p, saves, gate)
            out, preact = of_shape(out, x.shape), saved[0] if saves else None
        ctx.how = how
        if chosen is None or preact is None or x.requires_grad:
            ctx.save_for_backward(x, weight, bias, w_p, preact)
        else:
            # Only a second derivative needs weight here, so it may change in place before
            # backward, as under torch's own autograd.
            ctx.save_for_backward(x, None, bias, w_p, preact)
            ctx.weight, ctx.version = weight, weight._version
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of forward's arguments, in their order."""
        x, weight, bias, w_p, *preact = ctx.saved_tensors
        (dout,), chosen, needs = grad_outputs, ctx.how[0], ctx.needs_input_grad[:5]
        weight = ctx.weight if weight is None else weight
        run = key = None
        if chosen is not None and is_undisturbed_backward():
            key = signature(dout, x, weight, bias, w_p, preact[0]), needs
            run = chosen.backwards.get(key)
        if run is None:
            saved, context = (x, weight, bias, w_p, preact[0]), context_of_gradient(dout)
            if context != PLAIN or chosen is None or key is None or not are_plain(*saved):
                return *_traced_backward(ctx, context, dout, *saved), None
            run = chosen.ready_backward(key, dout, *saved)
            del saved
        # Unless the graph is kept for another pass, `run` now has the only reference to [L, R] and
        # frees it once its gradient is formed, as autograd does.
        ctx.maybe_clear_saved_tensors()
        return *run(dout, x, weight, bias, w_p, preact.pop()), None


def _traced_backward(ctx: Any, context: str, dout: Tensor, *saved: *Saved) -> Gradients:
    """`BilinearFunction.backward` where operators are watched or followed."""
    x, weight, bias, w_p, preact = saved
    (_, _, gate), needs = ctx.how, ctx.needs_input_grad[:5]
    rows, dout = as_rows(x), as_rows(dout)
    if context == TRANSFORMED:
        if hasattr(ctx, "version"):
            check_unchanged(weight, ctx.version)
        call = describe(rows, weight, bias, w_p, None, True, gate, TRANSFORMED)
        found = eager.backward(call, dout, rows, weight, bias, w_p, None, needs=needs)
    else:
        some = custom_ops.backward(dout, rows, weight, bias, w_p, preact, needs, gate)
        found = custom_ops.spread(some, needs)
    dx = None if found[0] is None else of_shape(found[0], x.shape)
    return dx, *found[1:]


# Without `Function.apply`'s test for torch.func transforms: `is_undisturbed` has made it.
_apply_to_plain = super(torch.autograd.Function, BilinearFunction).apply
