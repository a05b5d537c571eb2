"""The comparison by numbers alone; in `fuse`, reading the forward refuses most of these first."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bilinear.layer import probe
from bilinear.layer.fused_modules import FusedMLP

PARTS = ("gate_proj", "up_proj", "down_proj")
Twist = Callable[["Gated", Tensor], Tensor]


class Gated(nn.Module):
    """The formula with an operation on the gate's input and one on the output."""

    def __init__(
        self, of_gate: Twist = lambda m, y: y, of_output: Twist = lambda m, y: y, bias: bool = False
    ) -> None:
        super().__init__()
        self.of_gate, self.of_output = of_gate, of_output
        self.gate_proj, self.up_proj = nn.Linear(6, 5, bias=bias), nn.Linear(6, 5, bias=bias)
        self.down_proj = nn.Linear(5, 6, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.of_gate(self, self.gate_proj(x))
        return self.of_output(self, self.down_proj(gate * self.up_proj(x)))


FILLS: dict[str, Callable[[nn.Module], object]] = {
    "as drawn": lambda m: m,
    "zeros": lambda m: [nn.init.zeros_(p) for p in m.parameters()],
    "NaN": lambda m: [nn.init.constant_(p, torch.nan) for p in m.parameters()],
    "no memory": lambda m: m.to("meta"),
    "half": lambda m: [nn.init.constant_(p, 1e-6) for p in m.bfloat16().parameters()],
}


def at_middle(module: Gated, gate: Tensor) -> Tensor:
    return torch.where((gate.abs() > 1) & (gate.abs() < 3), 2 * gate, gate)


# Differences that only one scale of inputs shows.
BY_SCALE: dict[float, Gated] = {
    1e-3: Gated(of_output=lambda m, y: y + 1e-12),
    1.0: Gated(of_gate=at_middle),
    1e3: Gated(of_gate=lambda m, y: y.clamp(-50, 50)),
}
OTHERS: dict[str, Gated] = {
    "silu": Gated(of_gate=lambda m, y: F.silu(y)),
    "in training": Gated(of_output=lambda m, y: 2 * y if m.training else y),
    "out of training": Gated(of_output=lambda m, y: y if m.training else 2 * y),
    "NaN": Gated(of_output=lambda m, y: y * torch.nan),
    "another shape": Gated(of_output=lambda m, y: y.sum(-1)),
    "a failure": Gated(of_output=lambda m, y: y.view(-1, 7)),
    "a bias dropped": Gated(of_output=lambda m, y: y - m.down_proj.bias, bias=True),
}


def difference(module: nn.Module, gate: str = "identity") -> str:
    return probe.difference(module, FusedMLP, PARTS, gate)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("bias", [False, True])
def test_the_formula_is_found_equal_whatever_its_weights(fill: str, bias: bool) -> None:
    module = Gated(bias=bias)
    FILLS[fill](module)
    assert difference(module) == ""


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("what", OTHERS)
def test_what_differs_is_found_whatever_its_weights(what: str, fill: str) -> None:
    module = OTHERS[what]
    FILLS[fill](module)
    assert difference(module)


@pytest.mark.parametrize("scale", BY_SCALE)
def test_each_scale_is_needed(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(BY_SCALE) == set(probe._SCALES)
    assert difference(BY_SCALE[scale])
    monkeypatch.setattr(probe, "_SCALES", tuple(one for one in probe._SCALES if one != scale))
    assert difference(BY_SCALE[scale]) == ""
