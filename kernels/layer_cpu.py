"""Launcher of the compiled bilinear layer on the CPU (algebra and tiles: `layer_cpu.c`)."""

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

ISAS = ("baseline", "avx2", "avx512")
# By the newest instructions that decide how fast PyTorch's matmuls are, and these kernels.
PROCESSORS = ("baseline", "avx2", "avx512", "avx512_bf16", "avx512_fp16")
# In the order of the C source's enums.
GATES = ("identity", "silu", "gelu", "gelu_tanh", "relu", "sigmoid", "relu2")
_GATES = {gate: index for index, gate in enumerate(GATES)}
_INTO_DH = {None: 0, "h": 1, "dleft": 2}  # as in the C source's enum
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _import() -> tuple[ModuleType | None, str]:
    """The compiled module, or why there is none."""
    try:
        return importlib.import_module("bilinear.kernels._layer_cpu"), ""
    except ModuleNotFoundError:
        return None, "is not built (pip install with a C compiler builds it)"
    except (ImportError, AttributeError) as error:  # a PyTorch whose tensors it cannot read
        return None, f"cannot be loaded ({error})"


_compiled: Any
_compiled, _missing = _import()
_best_isa: int = -1 if _compiled is None else _compiled.best_isa()
# Asked once: under a hypervisor the instruction that tells takes microseconds.
_processor: str = "" if _compiled is None else _compiled.processor()


def unavailable_because(dtype: torch.dtype, gate: str) -> str:
    """Say why the compiled layer cannot be used here, or nothing if it can."""
    if _compiled is None:
        return f"the compiled CPU layer {_missing}"
    if dtype not in _DTYPES or (dtype == torch.float16 and not _compiled.has_float16()):
        return f"the compiled CPU layer has no {str(dtype).removeprefix('torch.')}"
    if gate not in _GATES:
        return f"the compiled CPU layer has no gate {gate}"
    return ""


def best_isa() -> str:
    """Name the widest instruction set that this build and this processor share."""
    return ISAS[_best_isa]


def processor() -> str:
    """Name this processor's class, one of `PROCESSORS`."""
    return _processor


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
    out: tuple[Tensor, Tensor | None]
    out = _compiled.forward(isa, _GATES[gate], x, weight, bias, w_p, b_p, save_preact)
    return out


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
    found: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
    found = _compiled.backward(isa, _GATES[gate], x, weight, bias, w_p, preact, dout, needs)
    return found


def has_pointwise(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `product_forward` and `product_backward` take such tensors."""
    return (
        device.type == "cpu" and _compiled is not None and dtype in (torch.float32, torch.bfloat16)
    )


def product_forward(
    left: Tensor, right: Tensor, *, gate: str, into_left: bool = False, isa: int = _best_isa
) -> Tensor:
    """h = g(L) ∘ R, (m, d) each, float32 or bfloat16; with `into_left` in L's memory.

    Formed in float32 and rounded once, on `torch.get_num_threads()` threads.
    """
    h: Tensor = _compiled.product_forward(isa, _GATES[gate], left, right, into_left)
    return h


def product_backward(
    dh: Tensor,
    left: Tensor,
    right: Tensor,
    *,
    gate: str,
    into_dh: Literal["h", "dleft"] | None = None,
    isa: int = _best_isa,
) -> Tensor:
    """[dL, dR] (m, 2d) of dh, L and R (m, d), in one pass.

    With `into_dh` "h", h is formed in the same pass and replaces dh. With "dleft" dL replaces dh,
    and dR (m, d) alone is returned. dh must be contiguous then.
    """
    made: Tensor
    made = _compiled.product_backward(isa, _GATES[gate], left, right, dh, _INTO_DH[into_dh])
    return made
