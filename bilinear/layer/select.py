"""Where a call runs: on the Triton kernels, or on torch's matmuls a block of rows at a time."""

import importlib.util
import os
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bilinear.layer import blocked
from bilinear.layer.eager import Gradients

# Triton reads the same variable when it decorates a kernel, so a later change would not count.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# What the kernels are compiled for at least, and what the interpreter is said to be.
_MIN_CAPABILITY = (8, 0)
_INTERPRETER_CAPABILITY = (9, 0)
# Saving L and R or not must not hang on M, or a compiled graph would be bound to one M.
_NOMINAL_ROWS = 2**14
_PRECISIONS = {"highest": "ieee", "high": "tf32", "medium": "tf32"}


def precision() -> str:
    """How float32 products are formed: torch's setting, in the kernels' words."""
    return _PRECISIONS[torch.get_float32_matmul_precision()]


def kernels_missing(device: torch.device) -> str:
    """Why the kernels cannot run on a device; empty if they can."""
    if device.type == "cpu" and INTERPRETED:
        return ""
    if device.type != "cuda":
        return f"there are no kernels for {device.type} tensors"
    return _kernels_missing_on_gpu(device)


@cache
def _kernels_missing_on_gpu(device: torch.device) -> str:
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


def plan(
    op: str,
    m: int,
    d_in: int,
    d: int,
    d_out: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    """The kernels' `Plan` of one op on m rows; see `kernels.dispatch.choose`."""
    from bilinear.kernels.dispatch import choose

    return choose(op, m, d_in, d, d_out, dtype, _capability(device), precision())


def mlp_keeps_preact(x: Tensor, weight: Tensor, w_p: Tensor) -> bool:
    """Whether an MLP free to save L and R should: not where one kernel makes them again."""
    if (x.is_cpu and not INTERPRETED) or x.device.type not in ("cuda", "cpu"):
        return True
    return _mlp_keeps_preact(x.device, x.dtype, weight.shape[1], weight.shape[0] // 2, w_p.shape[0])


# A compiler that traced into the table would break the graph: the answer is a constant to it.
def _mlp_keeps_preact(
    device: torch.device, dtype: torch.dtype, d_in: int, d: int, d_out: int
) -> bool:
    if kernels_missing(device):
        return True
    return plan("mlp_forward", _NOMINAL_ROWS, d_in, d, d_out, dtype, device).path != "mlp"


# What `torch.compiler.assume_constant_result` sets; to call it would import the whole compiler,
# which takes longer than a script's first forward.
_mlp_keeps_preact._dynamo_marked_constant = True  # type: ignore[attr-defined]


def bilinear_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """See `blocked.bilinear_forward`."""
    if (x.is_cpu and not INTERPRETED) or kernels_missing(x.device):
        return blocked.bilinear_forward(x, weight, bias, keep=keep)
    from bilinear.kernels import dual, pointwise

    chosen = _plan("bilinear_forward", x, weight, None)
    if chosen.path == "dual":
        return dual.dual_forward(x, weight, bias, precision=precision(), preact=keep)
    lr = F.linear(x, weight, bias)
    return pointwise.product_forward(lr), lr if keep else None


def bilinear_mlp_forward(
    x: Tensor,
    weight: Tensor,
    w_p: Tensor,
    bias: Tensor | None,
    b_p: Tensor | None,
    *,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """See `blocked.bilinear_mlp_forward`."""
    if (x.is_cpu and not INTERPRETED) or kernels_missing(x.device):
        return blocked.bilinear_mlp_forward(x, weight, w_p, bias, b_p, keep=keep)
    from bilinear.kernels import dual, mlp, pointwise

    chosen = _plan("mlp_forward", x, weight, w_p)
    if chosen.path == "mlp" and not keep:
        return mlp.mlp_forward(x, weight, bias, w_p, b_p, precision=precision()), None
    lr: Tensor | None
    if chosen.path == "pointwise":
        lr = F.linear(x, weight, bias)
        h = pointwise.product_forward(lr)
    else:
        h, lr = dual.dual_forward(x, weight, bias, precision=precision(), preact=keep)
    return F.linear(h, w_p, b_p), lr if keep else None


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
    """See `blocked.bilinear_backward`."""
    if (x.is_cpu and not INTERPRETED) or kernels_missing(x.device):
        return blocked.bilinear_backward(dh, x, weight, bias, lr, needs, spent=spent)
    from bilinear.kernels import dual, pointwise

    chosen = _plan("bilinear_backward", x, weight, None)
    if chosen.path == "dual" and lr is not None:
        return _backward_from_pair(dh, x, weight, lr, needs)
    if chosen.path == "dual":
        dlr, _ = dual.dual_backward(dh, x, weight, bias, precision=precision())
    else:
        dlr, _ = pointwise.product_backward(dh, F.linear(x, weight, bias) if lr is None else lr)
    return _from_pair_gradient(dlr, x, weight, needs)


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
    """See `blocked.bilinear_mlp_backward`."""
    if (x.is_cpu and not INTERPRETED) or kernels_missing(x.device):
        return blocked.bilinear_mlp_backward(dout, x, weight, w_p, bias, lr, needs, spent=spent)
    from bilinear.kernels import dual, mlp, pointwise

    db_p = dout.sum(0) if needs[4] else None
    if not any(needs[:4]):
        return None, None, None, None, db_p
    chosen = _plan("mlp_backward", x, weight, w_p)
    if chosen.path == "mlp" and lr is None:
        names = ("x", "weight", "w_p", "bias", "b_p")
        found = mlp.mlp_backward(
            dout,
            x,
            weight,
            bias,
            w_p,
            precision=precision(),
            needs=[name for name, need in zip(names, needs, strict=True) if need],
        )
        return tuple(found.get(name) for name in names)
    dh = dout @ w_p
    if chosen.path == "dual" and lr is None:
        dlr, h = dual.dual_backward(
            dh,
            x,
            weight,
            bias,
            precision=precision(),
            with_h=needs[2],
        )
    else:
        pair = F.linear(x, weight, bias) if lr is None else lr
        dlr, h = pointwise.product_backward(dh, pair, with_h=needs[2])
    dw_p = None if h is None else dout.t() @ h
    dx, dweight, dbias = _from_pair_gradient(dlr, x, weight, (needs[0], needs[1], needs[3]))
    return dx, dweight, dw_p, dbias, db_p


def _plan(op: str, x: Tensor, weight: Tensor, w_p: Tensor | None) -> Any:
    d_out = None if w_p is None else w_p.shape[0]
    m, d_in = x.shape
    return plan(op, m, d_in, weight.shape[0] // 2, d_out, x.dtype, x.device)


def _backward_from_pair(
    dh: Tensor, x: Tensor, weight: Tensor, lr: Tensor, needs: Sequence[bool]
) -> Gradients:
    from bilinear.kernels import dual

    dx = dweight = dbias = None
    if needs[0]:
        dx = dual.dual_backward_input(dh, lr, weight, precision=precision())
    if needs[1] or needs[2]:
        dweight, dbias = dual.dual_backward_weight(dh, lr, x, precision=precision(), bias=needs[2])
    return dx, dweight if needs[1] else None, dbias


def _from_pair_gradient(dlr: Tensor, x: Tensor, weight: Tensor, needs: Sequence[bool]) -> Gradients:
    return (
        dlr @ weight if needs[0] else None,
        dlr.t() @ x if needs[1] else None,
        dlr.sum(0) if needs[2] else None,
    )


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)
    return _INTERPRETER_CAPABILITY
