"""Launcher of the compiled bilinear layer on the CPU (algebra and tiles: `layer_cpu.c`)."""

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

ISAS = ("baseline", "avx2", "avx512")
# In the order of the C source's enums.
GATES = ("identity", "silu", "gelu", "gelu_tanh", "relu", "sigmoid", "relu2")
_GATES = {gate: index for index, gate in enumerate(GATES)}
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def _import() -> ModuleType | None:
    try:
        return importlib.import_module("bilinear.kernels._layer_cpu")
    except ModuleNotFoundError:
        return None


_compiled: Any = _import()
_best_isa: int = -1 if _compiled is None else _compiled.best_isa()
# Bound to names of this module: a call of few rows takes microseconds, and looking up an attribute
# of another module takes a part of one.
_get_num_threads = torch.get_num_threads
_empty_like, _CONTIGUOUS = torch.empty_like, torch.contiguous_format


def unavailable_because(dtype: torch.dtype, gate: str) -> str:
    """Say why the compiled layer cannot be used here, or nothing if it can."""
    if _compiled is None:
        return "the compiled CPU layer is not built (pip install with a C compiler builds it)"
    if dtype not in _DTYPES or (dtype == torch.float16 and not _compiled.has_float16()):
        return f"the compiled CPU layer has no {str(dtype).removeprefix('torch.')}"
    if gate not in _GATES:
        return f"the compiled CPU layer has no gate {gate}"
    return ""


def best_isa() -> str:
    """Name the widest instruction set that this build and this processor share."""
    return ISAS[_best_isa]


def shares_work() -> bool:
    """Whether PyTorch's OpenMP threads can be used: not without OpenMP, nor in a forked child."""
    return bool(_compiled.can_share_work())


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    w_p: Tensor | None,
    b_p: Tensor | None,
    *,
    gate: str,
    save_preact: bool,
    isa: int = _best_isa,
) -> tuple[Tensor, Tensor | None]:
    """Out (m, d_out), or h (m, d) where w_p is None; and preact (m, 2d) if it is to be saved.

    x (m, d_in), of any strides, weight (2d, d_in), bias (2d,), w_p (d_out, d), b_p (d_out,); all of
    one dtype, float32, bfloat16 or float16. Runs on `torch.get_num_threads()` threads, whose number
    changes no bit. `isa` counts in `ISAS`.
    """
    m, d_in = x.shape
    two_d = weight.shape[0]
    d_out = 0 if w_p is None else w_p.shape[0]
    out = x.new_empty((m, d_out or two_d // 2))
    preact = x.new_empty((m, two_d)) if save_preact else None
    x, weight, bias = _unnegated(x), _dense(weight), None if bias is None else _dense(bias)
    w_p = None if w_p is None else _dense(w_p)
    b_p = None if b_p is None else _dense(b_p)
    _compiled.forward(
        isa, _get_num_threads(), _DTYPES[x.dtype], _GATES[gate], m, d_in, two_d // 2, d_out,
        x.data_ptr(), *x.stride(),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        0 if w_p is None else w_p.data_ptr(),
        0 if preact is None else preact.data_ptr(),
        0 if b_p is None else b_p.data_ptr(),
        out.data_ptr(),
    )  # fmt: skip
    return out, preact


def backward(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    w_p: Tensor | None,
    preact: Tensor | None,
    needs: Sequence[bool],
    *,
    gate: str,
    isa: int = _best_isa,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight, bias, w_p and b_p, those that `needs` names; None for the others.

    dout (m, d_out), or (m, d) where w_p is None, of any strides, zero ones too. Where preact is
    None it is formed again.
    """
    m, d_in = x.shape
    two_d = weight.shape[0]
    d_out = 0 if w_p is None else w_p.shape[0]
    need_x, need_weight, need_bias, need_w_p, need_b_p = needs
    dout, x, weight = _unnegated(dout), _unnegated(x), _dense(weight)
    bias, w_p = None if bias is None else _dense(bias), None if w_p is None else _dense(w_p)
    dx = _empty_like(x, memory_format=_CONTIGUOUS) if need_x else None
    dweight = _empty_like(weight) if need_weight else None
    dbias = x.new_empty(two_d) if need_bias else None
    dw_p = _empty_like(w_p) if need_w_p and w_p is not None else None
    db_p = x.new_empty(d_out) if need_b_p else None
    _compiled.backward(
        isa, _get_num_threads(), _DTYPES[x.dtype], _GATES[gate], m, d_in, two_d // 2, d_out,
        x.data_ptr(), *x.stride(),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        0 if w_p is None else w_p.data_ptr(),
        0 if preact is None else preact.data_ptr(),
        dout.data_ptr(), *dout.stride(),
        0 if dx is None else dx.data_ptr(),
        0 if dweight is None else dweight.data_ptr(),
        0 if dbias is None else dbias.data_ptr(),
        0 if dw_p is None else dw_p.data_ptr(),
        0 if db_p is None else db_p.data_ptr(),
    )  # fmt: skip
    return dx, dweight, dbias, dw_p, db_p


def _unnegated(tensor: Tensor) -> Tensor:
    """A pointer does not show a lazy minus sign, as a conjugate's imaginary part may have one."""
    return tensor.resolve_neg() if tensor.is_neg() else tensor


def _dense(tensor: Tensor) -> Tensor:
    tensor = tensor.resolve_neg() if tensor.is_neg() else tensor
    return tensor if tensor.is_contiguous() else tensor.contiguous()
