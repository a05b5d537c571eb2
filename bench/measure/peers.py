"""Other implementations of the layer, in PyTorch and in other packages, with one signature.

`make` returns f(x, weight) for the op "layer", f(x, weight, w_p) for "mlp", with weight (2d, d_in),
left half first; `absent` says why a peer is not available. eager and compile are plain PyTorch.

    linear-binary  oneDNN's matmul with a product fused into it, which Inductor calls for frozen
                weights: x W_rᵀ, then (x W_lᵀ) ∘ R in one call; forward only, CPU only
    matmul+mul  one library matmul over the packed weight, then one elementwise kernel forward and
                one backward: Liger-Kernel's pattern for SwiGLU, applied to the plain product with
                this library's own kernels (kernels/pointwise.py)
    liger       Liger-Kernel's own operator: two matmuls, one kernel. It has no identity gate:
                it computes silu(L) ∘ R: one more sigmoid per element, the same traffic
    liger mlp   Liger-Kernel's fused MLP (`LigerMLPFunction`): both products and the gate in one
                kernel, silu(L) ∘ R, with a projection back to d_in columns only, 16 bits only
    quack       its gated MLP (Hopper and later) with relu(L) ∘ R, its cheapest gate; MLP only,
                16 bits only

The last four need a CUDA device, and the last three their packages (`pip install '.[peers]'`).
Their adapters follow the packages' sources; THEY HAVE NOT BEEN RUN ON A GPU YET. `verify` raises
for a package that does not compute the formula named here, so that it is not timed.
"""

import importlib
import shutil
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bilinear.layer import eager

Layer = Callable[..., Tensor]

OPS = ("layer", "mlp")
# name: the module to import, and the ops it has
PACKAGES = {
    "liger": ("liger_kernel.ops.swiglu", OPS),
    "liger mlp": ("liger_kernel.ops.mlp", ("mlp",)),
    "quack": ("quack.mlp", ("mlp",)),
}
# Peers with forward and backward; on a GPU too.
PEERS = ("eager", "compile", "max-autotune", "matmul+mul", *PACKAGES)
GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "liger": F.silu,
    "liger mlp": F.silu,
    "quack": F.relu,
}
_HALF = (torch.bfloat16, torch.float16)


def _eager_mlp(x: Tensor, weight: Tensor, w_p: Tensor) -> Tensor:
    return eager.compose(x, weight, None, w_p)


EAGER: dict[str, Layer] = {"layer": eager.compose, "mlp": _eager_mlp}


def absent(name: str, op: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """Why a peer is not available here; empty if it is available."""
    if name in ("compile", "max-autotune") and device.type == "cpu":
        has_compiler = shutil.which("c++") or shutil.which("g++")
        return "" if has_compiler else "torch.compile needs a C++ compiler, none is on the path"
    if name == "linear-binary":
        has_it = device.type == "cpu" and torch.backends.mkldnn.is_available()
        return "" if has_it else f"{name} needs oneDNN on a CPU, and has no backward"
    if name in ("matmul+mul", *PACKAGES) and device.type != "cuda":
        return f"{name} needs a CUDA device; torch.cuda.is_available() is False"
    if name not in PACKAGES:
        return ""
    module, ops = PACKAGES[name]
    if op not in ops:
        return f"{name} has no {op} without a projection"
    if name != "liger" and dtype not in _HALF:
        return f"{name} takes 16 bits only, not {dtype}"
    try:
        importlib.import_module(module)
    except Exception as error:  # a package built for another PyTorch raises many types
        return f"{name}: {type(error).__name__}: {error}"
    return ""


def make(name: str, op: str, device: torch.device) -> Layer:
    """The peer as a function; `absent` must have returned an empty string."""
    if name == "eager":
        return EAGER[op]
    if name in ("compile", "max-autotune"):
        torch.compiler.reset()
        # CUDA graphs would copy each new input into a fixed buffer.
        tuned = "max-autotune" if device.type == "cpu" else "max-autotune-no-cudagraphs"
        mode = tuned if name == "max-autotune" else "default"
        compiled: Layer = torch.compile(EAGER[op], fullgraph=True, dynamic=False, mode=mode)
        return compiled
    return _ADAPTERS[name]


def verify(name: str, f: Layer, inputs: list[Tensor]) -> None:
    """Raise ValueError if a peer does not compute its gate, within the precision of 16 bits."""
    if name not in GATES:
        return
    x, weight, *w_p = (tensor.detach() for tensor in inputs)
    with torch.no_grad():
        got = f(x, weight, *w_p).float()
        left, right = F.linear(x.float(), weight.float()).chunk(2, dim=-1)
        want = GATES[name](left) * right
        for projection in w_p:
            want = F.linear(want, projection.float())
    error = float((got - want).abs().max() / want.abs().max())
    if not error < 0.05:
        raise ValueError(f"{name}: expected its gated product, got one {error:.2g} away from it")


class _Product(torch.autograd.Function):
    """L ∘ R of packed [L, R] by one kernel forward and one backward."""

    @staticmethod
    def forward(ctx: Any, preact: Tensor) -> Tensor:
        from bilinear.kernels.pointwise import product_forward

        ctx.save_for_backward(preact)
        return product_forward(preact)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        from bilinear.kernels.pointwise import product_backward

        (preact,) = ctx.saved_tensors
        return product_backward(grad_outputs[0], preact)[0]


def _product(x: Tensor, weight: Tensor, *w_p: Tensor) -> Tensor:
    h: Tensor = _Product.apply(F.linear(x, weight))
    return F.linear(h, *w_p) if w_p else h


def _linear_binary(x: Tensor, weight: Tensor, *w_p: Tensor) -> Tensor:
    w_l, w_r = weight.chunk(2)
    fused = torch.ops.mkldnn._linear_pointwise.binary
    h: Tensor = fused(x, F.linear(x, w_r), w_l, None, "mul")
    return F.linear(h, *w_p) if w_p else h


def _liger(x: Tensor, weight: Tensor, *w_p: Tensor) -> Tensor:
    operator = importlib.import_module("liger_kernel.ops.swiglu").LigerSiLUMulFunction
    w_l, w_r = weight.chunk(2)
    h: Tensor = operator.apply(F.linear(x, w_l), F.linear(x, w_r))
    return F.linear(h, *w_p) if w_p else h


def _liger_mlp(x: Tensor, weight: Tensor, w_p: Tensor) -> Tensor:
    if w_p.shape[0] != x.shape[-1]:
        raise ValueError(f"d_out: liger mlp takes d_out = d_in = {x.shape[-1]}, got {w_p.shape[0]}")
    operator = importlib.import_module("liger_kernel.ops.mlp").LigerMLPFunction
    out: Tensor = operator.apply(x, *weight.chunk(2), w_p)
    return out


def _quack(x: Tensor, weight: Tensor, w_p: Tensor) -> Tensor:
    mlp = importlib.import_module("quack.mlp").mlp_func
    # By default quack's gates take pairs of neighbouring rows, not two halves.
    out: Tensor = mlp(x, weight, w_p, activation="reglu", concat_layout=True)
    return out


_ADAPTERS: dict[str, Layer] = {
    "linear-binary": _linear_binary,
    "matmul+mul": _product,
    "liger": _liger,
    "liger mlp": _liger_mlp,
    "quack": _quack,
}
