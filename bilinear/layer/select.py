"""Which implementation a call runs on: forward, backward and `explain` all ask here."""

import torch
from torch import Tensor

from bilinear.layer import eager, matmuls, native, triton_kernels
from bilinear.layer.call import PLAIN, Call, Implementation
from bilinear.layer.checks import check
from bilinear.layer.context import are_plain

# The first that does not refuse a call runs it; eager refuses none.
IMPLEMENTATIONS: tuple[Implementation, ...] = (triton_kernels, native, matmuls, eager)
# Cached choices by the arguments' types, shapes, dtypes and devices and the number of threads, so
# that a call like an earlier one skips the checks. Cleared when it has this many.
_MOST_SIGNATURES = 4096
_get_num_threads = torch.get_num_threads
# Reads `torch.backends.cuda.matmul.fp32_precision` without the four checks of its getter.
_fp32_precision = torch._C._get_fp32_precision_getter
_chosen: dict[object, tuple[Call, Implementation]] = {}


def select(call: Call) -> Implementation:
    """The first implementation that doesn't refuse the call."""
    for implementation in IMPLEMENTATIONS:
        if not implementation.refusal(call):
            return implementation
    raise AssertionError("eager refuses no call")


def describe(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    w_p: Tensor | None,
    b_p: Tensor | None,
    recompute: bool,
    gate: str,
    context: str,
) -> Call:
    """The arguments as a `Call`, once they are found to go together; see `checks.check`."""
    check(x, weight, bias, w_p, b_p)
    d_in = weight.shape[1]
    return Call(
        x.numel() // d_in,
        d_in,
        weight.shape[0] // 2,
        None if w_p is None else w_p.shape[0],
        x.dtype,
        x.device,
        precision(x.dtype, x.device),
        recompute,
        gate,
        context,
    )


def choose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    w_p: Tensor | None,
    b_p: Tensor | None,
    recompute: bool,
    gate: str,
) -> tuple[Call, Implementation] | None:
    """A call that nothing surrounds, and what runs it; None unless the tensors are plain ones.

    Looked up where such a call came before: 2 µs, where checks and choice take 15.
    """
    try:
        signature = (
            type(x), x.shape, x.dtype, x.device, recompute, gate, _get_num_threads(),
            "ieee" if x.is_cpu and not triton_kernels.INTERPRETED else precision(x.dtype, x.device),
            type(weight), weight.shape, weight.dtype, weight.device,
            bias is None or (type(bias), bias.shape, bias.dtype, bias.device),
            w_p is None or (type(w_p), w_p.shape, w_p.dtype, w_p.device),
            b_p is None or (type(b_p), b_p.shape, b_p.dtype, b_p.device),
        )  # fmt: skip
    except AttributeError:  # no tensor: `check` will raise
        return None
    found = _chosen.get(signature)
    if found is None and are_plain(x, weight, bias, w_p, b_p):
        call = describe(x, weight, bias, w_p, b_p, recompute, gate, PLAIN)
        found = call, select(call)
        if len(_chosen) >= _MOST_SIGNATURES:
            _chosen.clear()
        _chosen[signature] = found
    return found


def precision(dtype: torch.dtype, device: torch.device) -> str:
    """How the kernels form float32 products: torch's setting for CUDA, "ieee" or "tf32"."""
    if dtype != torch.float32 or (device.type == "cpu" and not triton_kernels.INTERPRETED):
        return "ieee"
    # The newer of torch's two settings: torch.set_float32_matmul_precision, the older, sets it too.
    # Reading the older raises where only the newer was set.
    return "tf32" if _fp32_precision("cuda", "matmul") == "tf32" else "ieee"
