"""The layer on the Triton kernels: the whole MLP, the dual matmul, or a library matmul and one
elementwise kernel, as the kernels' table of sizes says.
"""

import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bilinear.kernels import dispatch
from bilinear.kernels.dispatch import Detail
from bilinear.kernels.places import How, place, rows
from bilinear.layer.call import (
    PLAIN,
    TRANSFORMED,
    Arguments,
    Backward,
    Call,
    Forward,
    Gradients,
    Saved,
)

NAME = "triton"
# Read once, as Triton reads it when a kernel is decorated: a later change has no effect.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# The least capability that the kernels are compiled for, and the one assumed for the interpreter.
_MIN_CAPABILITY = (8, 0)
_INTERPRETER_CAPABILITY = (9, 0)


def refusal(call: Call) -> str:
    """See `call.Implementation`."""
    if call.device.type == "cpu":
        missing = "" if INTERPRETED else "there are no Triton kernels for cpu tensors"
    elif call.device.type == "cuda":
        missing = _missing_on_gpu(call.device)
    else:
        missing = f"there are no Triton kernels for {call.device.type} tensors"
    if not missing and call.context == TRANSFORMED:
        return "torch's transforms see no kernels"
    return missing


@cache
def _missing_on_gpu(device: torch.device) -> str:
    if torch.version.hip is not None:
        return "the kernels are not tuned for ROCm"
    capability = torch.cuda.get_device_capability(device)
    if capability < _MIN_CAPABILITY:
        return f"compute capability {capability} is below {_MIN_CAPABILITY}"
    if importlib.util.find_spec("triton") is None:
        warnings.warn(
            "triton is not installed: bilinear layers run on torch's own matmuls on this GPU",
            stacklevel=2,
        )
        return "triton is not installed"
    return ""


def saves_preact(call: Call) -> bool:
    """See `call.Implementation`: not where one kernel makes the whole MLP and forms it again."""
    return not call.recompute and (call.d_out is None or _detail(call, "forward").kernel != "mlp")


def detail(call: Call, direction: str) -> Detail:
    """See `call.Implementation`: "mlp", "dual" or "pointwise", and its tile."""
    return _detail(call, direction, saved=direction == "backward" and saves_preact(call))


def _detail(call: Call, direction: str, *, saved: bool = False) -> Detail:
    """Looked up where such a call came before: traced ones may hold sizes that have no hash."""
    make = _known_detail if call.context == PLAIN else _new_detail
    return make(call, direction, saved)


def _new_detail(call: Call, direction: str, saved: bool) -> Detail:
    op = f"{'bilinear' if call.d_out is None else 'mlp'}_{direction}"
    capability = _INTERPRETER_CAPABILITY
    if call.device.type == "cuda":
        capability = _capability(call.device)
    sizes = call.m, call.d_in, call.d, call.d_out, call.dtype
    return dispatch.choose(op, *sizes, capability, call.precision, saved, call.gate)


@cache
def _launchers() -> tuple[Any, Any, Any]:
    """Imported at the first call: they import Triton, which takes a second."""
    from bilinear.kernels import dual, mlp, pointwise

    return dual, mlp, pointwise


_known_detail = lru_cache(4096)(_new_detail)
_capability = cache(torch.cuda.get_device_capability)


def ready_forward(call: Call, *given: *Arguments, save_preact: bool) -> Forward:
    """See `call.Implementation`."""
    dual, mlp, pointwise = _launchers()
    how, kernel = _how(call), _detail(call, "forward").kernel
    of_x, of_weight = place(given[0]), place(given[1])
    if kernel == "mlp" and given[3] is not None and not save_preact:
        whole = mlp.ready_forward(of_x, of_weight, place(given[3]), how)
        return lambda x, weight, bias, w_p, b_p: (whole(x, weight, bias, w_p, b_p), None)
    if kernel == "pointwise":
        product = pointwise.ready_forward(rows(call.m, 2 * call.d), call.gate)
    else:
        halves = dual.ready_forward(of_x, of_weight, how, save_preact)

    def run(
        x: Tensor, weight: Tensor, bias: Tensor | None, w_p: Tensor | None, b_p: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if kernel == "pointwise":
            preact = F.linear(x, weight, bias)
            h = product(preact)
        else:
            h, preact = halves(x, weight, bias)
        return h if w_p is None else F.linear(h, w_p, b_p), preact if save_preact else None

    return run


def ready_backward(call: Call, dout: Tensor, *saved: *Saved, needs: Sequence[bool]) -> Backward:
    """See `call.Implementation`."""
    x, weight, _, w_p, preact = saved
    kernel = _detail(call, "backward", saved=preact is not None).kernel
    if not any(needs[:4]):
        return lambda dout, *saved: (None, None, None, None, dout.sum(0) if needs[4] else None)
    if kernel == "mlp" and w_p is not None and preact is None:
        return _by_one_kernel(_how(call), dout, x, weight, w_p, needs)
    if kernel == "dual" and w_p is None and preact is not None:
        return _by_two_kernels(_how(call), dout, x, weight, preact, needs)
    of_dh = place(dout) if w_p is None else rows(call.m, call.d)
    dual, _, pointwise = _launchers()
    if kernel == "dual" and preact is None:
        recomputed = dual.ready_backward(of_dh, place(x), place(weight), _how(call), needs[3])
        return _around_a_kernel(recomputed, needs, takes_x=True)
    of_preact = rows(call.m, 2 * call.d) if preact is None else place(preact)
    product = pointwise.ready_backward(of_dh, of_preact, call.gate, needs[3])
    return _around_a_kernel(product, needs, takes_x=False)


def _how(call: Call) -> How:
    return How(call.dtype, call.device, call.precision, call.gate)


def _by_one_kernel(
    how: How, dout: Tensor, x: Tensor, weight: Tensor, w_p: Tensor, needs: Sequence[bool]
) -> Backward:
    _, mlp, _ = _launchers()
    places = place(dout), place(x), place(weight), place(w_p)
    gradients = mlp.ready_backward(*places, how, tuple(needs))

    def run(
        dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, w_p: Tensor | None, _: object
    ) -> Gradients:
        found: Gradients = gradients(dout, x, weight, bias, w_p)
        return found

    return run


def _by_two_kernels(
    how: How, dout: Tensor, x: Tensor, weight: Tensor, preact: Tensor, needs: Sequence[bool]
) -> Backward:
    """One for dx, one for dW and db; without a projection."""
    dual, _, _ = _launchers()
    of_dh, of_preact = place(dout), place(preact)
    inputs = dual.ready_input(of_dh, of_preact, place(weight), how)
    weights = dual.ready_weight(of_dh, of_preact, place(x), how, needs[2])

    def run(
        dout: Tensor, x: Tensor, weight: Tensor, bias: object, w_p: object, preact: Tensor | None
    ) -> Gradients:
        dx = inputs(dout, preact, weight) if needs[0] else None
        dweight, dbias = weights(dout, preact, x) if needs[1] or needs[2] else (None, None)
        return dx, dweight if needs[1] else None, dbias, None, None

    return run


def _around_a_kernel(
    kernel: Callable[..., tuple[Tensor, Tensor | None]], needs: Sequence[bool], *, takes_x: bool
) -> Backward:
    """Torch's matmuls around one kernel for [dL, dR] and h, of dh and [L, R] or of dh and x."""

    def run(
        dout: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        w_p: Tensor | None,
        preact: Tensor | None,
    ) -> Gradients:
        dh = dout if w_p is None else torch.mm(dout, w_p)
        if takes_x:
            dpreact, h = kernel(dh, x, weight, bias)
        else:
            dpreact, h = kernel(dh, F.linear(x, weight, bias) if preact is None else preact)
        del preact, dh  # freed before the gradients are made
        return (
            torch.mm(dpreact, weight) if needs[0] else None,
            torch.mm(dpreact.mT, x) if needs[1] else None,
            dpreact.sum(0) if needs[2] else None,
            None if h is None else torch.mm(dout.mT, h),
            dout.sum(0) if needs[4] else None,
        )

    return run
