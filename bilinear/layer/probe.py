"""A module's own forward against the layer's formula, on a small twin with fresh weights.

The twin is a shallow copy whose linears have a few units, drawn with O(1) weights in float64: so
zero, NaN, half-precision or unmaterialised weights of the model prove nothing and hide nothing, and
a model of any size is probed in microseconds.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bilinear.layer import eager
from bilinear.layer.fused_modules import Fused, FusedBilinear, FusedMLP, FusedPair

_D_IN, _D, _D_OUT, _ROWS = 5, 4, 3, 3
_SIZES: dict[type[Fused], list[tuple[int, int]]] = {
    FusedBilinear: [(_D_IN, 2 * _D)],
    FusedPair: [(_D_IN, 2 * _D), (_D, _D_OUT)],
    FusedMLP: [(_D_IN, _D), (_D_IN, _D), (_D, _D_OUT)],
}
# Small inputs show added terms, large ones clamps and saturation.
_SCALES = (1e-3, 1.0, 1e3)
_TOLERANCE = 1e-10


def difference(module: nn.Module, kind: type[Fused], parts: tuple[str, ...], gate: str) -> str:
    """How a module's forward differs from the formula, training or not; empty if it does not."""
    twin, linears = _twin(module, kind, parts)
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for scale in _SCALES:
                x = scale * torch.randn(_ROWS, _D_IN, generator=generator, dtype=torch.float64)
                want = _formula(kind, linears, x, gate)
                for training in (False, True):
                    twin.training = training
                    error = (type(module).forward(twin, x) - want).abs().max() / want.abs().max()
                    if not error <= _TOLERANCE:  # NaN fails as well
                        return f"its forward computes something else (off by {error:.1g})"
    except Exception as error:  # the model's own code may raise anything
        return f"its forward cannot be run: {type(error).__name__}: {error}"
    return ""


def _formula(kind: type[Fused], linears: list[nn.Linear], x: Tensor, gate: str) -> Tensor:
    halves = linears[:2] if kind is FusedMLP else linears[:1]
    biases: list[Tensor] = [linear.bias for linear in halves if linear.bias is not None]
    weights: list[Tensor] = [linear.weight for linear in halves]
    h = eager.compose(x, torch.cat(weights), torch.cat(biases) if biases else None, gate=gate)
    return h if kind is FusedBilinear else linears[-1](h)


def _twin(
    module: nn.Module, kind: type[Fused], parts: tuple[str, ...]
) -> tuple[nn.Module, list[nn.Linear]]:
    """A copy with other linears, tied where the module's are; and those linears, in order."""
    fresh: dict[nn.Module, nn.Linear] = {}
    for name, size in zip(parts or ("",), _SIZES[kind], strict=True):
        original: Any = getattr(module, name) if name else module
        if original not in fresh:
            fresh[original] = _linear(original, *size)
    if not parts:
        return fresh[module], [fresh[module]]
    twin = type(module).__new__(type(module))
    twin.__dict__ = dict(module.__dict__)
    children = {name: fresh.get(child, child) for name, child in module._modules.items() if child}
    twin.__dict__["_modules"] = children
    return twin, [fresh[getattr(module, name)] for name in parts]


def _linear(original: nn.Linear, n_in: int, n_out: int) -> nn.Linear:
    """A linear of another size with the class and plain attributes of `original`."""
    twin = type(original).__new__(type(original))
    has_bias = original.bias is not None
    sizes: dict[str, Any] = {"bias": has_bias, "dtype": torch.float64, "device": "cpu"}
    made = nn.utils.skip_init(nn.Linear, n_in, n_out, **sizes)  # draws nothing
    for parameter in made.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(n_in * n_out))
    twin.__dict__ = {**original.__dict__, **made.__dict__}
    return twin
