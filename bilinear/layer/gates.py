"""The gates g of h = g(L) ∘ R by name, and the product with its gradient in torch's operations.

    dL = dh ∘ R ∘ g′(L)    dR = dh ∘ g(L)

h and its gradient need [L, R] alone, whatever the gate. To add a gate, add it to GATES, what torch
calls it to FUNCTIONS and MODULES, and its device function to `kernels/gates_device.py`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_aten = torch.ops.aten


class Gate(NamedTuple):
    """g and its gradient, twice: as autograd and its transforms follow them, and into memory given.

    `backward(dy, x)` is dy ∘ g′(x), whose own gradient makes g″. `g_out(x, out)` and
    `backward_out(dy, x, out)` write to `out`, which may be dy itself; autograd doesn't see them.
    """

    g: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]
    g_out: Callable[[Tensor, Tensor], Tensor]
    backward_out: Callable[[Tensor, Tensor, Tensor], Tensor]


def _silu_backward(dy: Tensor, x: Tensor) -> Tensor:
    """In full: torch has no derivative of its kernel."""
    s = torch.sigmoid(x)
    return dy * (s * (1 + x * (1 - s)))


def _relu2_backward(dy: Tensor, x: Tensor) -> Tensor:
    gradient: Tensor = _aten.threshold_backward(dy * (2 * F.relu(x)), x, 0)
    return gradient


def _gelu(approximate: str) -> Gate:
    return Gate(
        partial(F.gelu, approximate=approximate),
        partial(_aten.gelu_backward, approximate=approximate),
        # Not gelu.out, which leaves a strided `out` unwritten where x is contiguous (torch 2.13).
        lambda x, out: _aten.gelu_(out.copy_(x), approximate=approximate),
        lambda dy, x, out: _aten.gelu_backward.grad_input(
            dy, x, approximate=approximate, grad_input=out
        ),
    )


def _identity(x: Tensor, out: Tensor | None = None) -> Tensor:
    return x if out is None else out.copy_(x)


GATES = {
    "identity": Gate(_identity, lambda dy, x: dy, _identity, lambda dy, x, out: out.copy_(dy)),
    "silu": Gate(
        F.silu,
        _silu_backward,
        lambda x, out: _aten.silu.out(x, out=out),
        lambda dy, x, out: _aten.silu_backward.grad_input(dy, x, grad_input=out),
    ),
    "gelu": _gelu("none"),
    "gelu_tanh": _gelu("tanh"),
    "relu": Gate(
        F.relu,
        lambda dy, x: _aten.threshold_backward(dy, x, 0),
        lambda x, out: torch.clamp_min(x, 0, out=out),
        lambda dy, x, out: _aten.threshold_backward.grad_input(dy, x, 0, grad_input=out),
    ),
    "sigmoid": Gate(
        torch.sigmoid,
        lambda dy, x: _aten.sigmoid_backward(dy, torch.sigmoid(x)),
        lambda x, out: torch.sigmoid(x, out=out),
        lambda dy, x, out: _aten.sigmoid_backward.grad_input(dy, torch.sigmoid(x), grad_input=out),
    ),
    "relu2": Gate(
        lambda x: F.relu(x).square(),
        _relu2_backward,
        lambda x, out: torch.clamp_min(x, 0, out=out).square_(),
        lambda dy, x, out: out.copy_(_relu2_backward(dy, x)),
    ),
}

# Torch's functions and modules by gate; F.gelu's argument tells its two kinds apart.
FUNCTIONS: tuple[tuple[Any, str], ...] = (
    (F.silu, "silu"), (F.gelu, "gelu"), (F.relu, "relu"), (torch.relu, "relu"),
    (F.sigmoid, "sigmoid"), (torch.sigmoid, "sigmoid"),
)  # fmt: skip
MODULES: dict[type[nn.Module], str] = {
    nn.Identity: "identity", nn.SiLU: "silu", nn.ReLU: "relu", nn.Sigmoid: "sigmoid",
}  # fmt: skip


def gate_name(gate: object) -> str:
    """The name of a gate given by it, by torch's function or by torch's module.

    Raises:
        ValueError: it is none of them.
    """
    if isinstance(gate, str):
        if gate in GATES:
            return gate
    elif found := name_in_torch(gate):
        return found
    raise ValueError(
        f"gate: expected one of {', '.join(GATES)}, or torch's function or module of one "
        f"(torch.nn.functional.silu, torch.nn.GELU('tanh')), got {gate!r}"
    )


def name_in_torch(gate: object) -> str:
    """The name of a gate given by torch's function or module; empty for anything else."""
    if type(gate) is nn.GELU:
        return _gelu_name(gate.approximate)
    if type(gate) is partial and gate.func is F.gelu and not gate.args:
        more = {"approximate": "none", **gate.keywords}
        return _gelu_name(more["approximate"]) if len(more) == 1 else ""
    # By identity: the value may have no hash, or its own equality.
    function = next((name for known, name in FUNCTIONS if gate is known), "")
    return function or MODULES.get(type(gate), "")  # type: ignore[arg-type]


def _gelu_name(approximate: str) -> str:
    return {"none": "gelu", "tanh": "gelu_tanh"}.get(approximate, "")


def product(left: Tensor, right: Tensor, gate: str, out: Tensor | None = None) -> Tensor:
    """h = g(L) ∘ R, (…, d) each; written to `out` if that is given."""
    if gate != "identity":
        return GATES[gate].g(left) * right if out is None else _product_out(left, right, gate, out)
    return left * right if out is None else torch.mul(left, right, out=out)


def _product_out(left: Tensor, right: Tensor, gate: str, out: Tensor) -> Tensor:
    return GATES[gate].g_out(left, out).mul_(right)


def product_backward(
    dh: Tensor, left: Tensor, right: Tensor, gate: str, out: Tensor | None = None
) -> Tensor:
    """[dL, dR] (…, 2d) for dh, L and R (…, d); written to `out` if that is given."""
    if out is None:
        if gate == "identity":
            return torch.cat((dh * right, dh * left), -1)
        return torch.cat((GATES[gate].backward(dh * right, left), dh * GATES[gate].g(left)), -1)
    d = dh.shape[-1]
    dleft = torch.mul(dh, right, out=out[..., :d])
    if gate == "identity":
        torch.mul(dh, left, out=out[..., d:])
        return out
    GATES[gate].backward_out(dleft, left, dleft)
    _product_out(left, dh, gate, out[..., d:])
    return out
