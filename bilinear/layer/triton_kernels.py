"""The layer on the Triton kernels: the whole MLP, the dual matmul, or a library matmul and one
elementwise kernel, as the kernels' table of sizes says.
"""

import importlib.util
import os
import warnings
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from bilinear.kernels import dispatch
from bilinear.kernels.dispatch import Detail
from bilinear.layer.call import PLAIN, TRANSFORMED, Arguments, Call, Gradients, Saved
from bilinear.layer.matmuls import linear

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


def forward(call: Call, *given: *Arguments, save_preact: bool) -> tuple[Tensor, Tensor | None]:
    """See `call.Implementation`."""
    x, weight, bias, w_p, b_p = given
    dual, mlp, pointwise = _launchers()
    how: dict[str, Any] = {"precision": call.precision, "gate": call.gate}
    kernel = _detail(call, "forward").kernel
    preact: Tensor | None
    if kernel == "mlp" and w_p is not None and not save_preact:
        return mlp.mlp_forward(x, weight, bias, w_p, b_p, **how), None
    if kernel == "pointwise":
        preact = linear(x, weight, bias)
        h = pointwise.product_forward(preact, call.gate)
    else:
        h, preact = dual.dual_forward(x, weight, bias, save_preact=save_preact, **how)
    out = h if w_p is None else linear(h, w_p, b_p)
    return out, preact if save_preact else None


def backward(call: Call, dout: Tensor, *saved: *Saved, needs: Sequence[bool]) -> Gradients:
    """See `call.Implementation`."""
    x, weight, bias, w_p, preact = saved
    del saved  # its reference to preact would keep that in memory
    dual, mlp, pointwise = _launchers()
    how: dict[str, Any] = {"precision": call.precision, "gate": call.gate}
    db_p = dout.sum(0) if needs[4] else None
    if not any(needs[:4]):
        return None, None, None, None, db_p
    kernel = _detail(call, "backward", saved=preact is not None).kernel
    if kernel == "mlp" and w_p is not None and preact is None:
        wanted = [name for name, need in zip(mlp.GRADIENTS[:4], needs, strict=False) if need]
        found = mlp.mlp_backward(dout, x, weight, bias, w_p, needs=wanted, **how)
        dx, dweight, dbias, dw_p = (found.get(name) for name in mlp.GRADIENTS[:4])
        return dx, dweight, dbias, dw_p, db_p
    if kernel == "dual" and w_p is None and preact is not None:
        dx = dual.dual_backward_input(dout, preact, weight, **how) if needs[0] else None
        if not (needs[1] or needs[2]):
            return dx, None, None, None, None
        dweight, dbias = dual.dual_backward_weight(dout, preact, x, bias=needs[2], **how)
        return dx, dweight if needs[1] else None, dbias, None, None
    dh = dout if w_p is None else torch.mm(dout, w_p)
    if kernel == "dual" and preact is None:
        dpreact, h = dual.dual_backward(dh, x, weight, bias, with_h=needs[3], **how)
    else:
        preact = linear(x, weight, bias) if preact is None else preact
        dpreact, h = pointwise.product_backward(dh, preact, call.gate, with_h=needs[3])
    del preact, dh  # freed before the gradients are made
    return (
        torch.mm(dpreact, weight) if needs[0] else None,
        torch.mm(dpreact.t(), x) if needs[1] else None,
        dpreact.sum(0) if needs[2] else None,
        None if h is None else torch.mm(dout.t(), h),
        db_p,
    )
