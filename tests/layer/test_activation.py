"""Which activations fuse takes for a gate, and that one changed later takes effect."""

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bilinear import explain, fuse
from bilinear.layer.fused_modules import FusedMLP
from bilinear.layer.gates import GATES


class MLP(nn.Module):
    """A gated MLP; `act` is a module or a function."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self.left, self.right, self.down = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 6)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.right(x) * self.act(self.left(x)))


class Kept(nn.Module):
    """An activation that keeps its function."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


class SquaredRelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        positive = F.relu(x)
        return torch.square(positive)


TANH = functools.partial(F.gelu, approximate="tanh")
WAYS: dict[str, list[Callable[[], Any]]] = {
    "identity": [nn.Identity],
    "silu": [nn.SiLU, lambda: F.silu, lambda: Kept(F.silu)],
    "gelu": [nn.GELU, lambda: F.gelu, lambda: Kept(F.gelu)],
    "gelu_tanh": [lambda: nn.GELU("tanh"), lambda: TANH, lambda: Kept(TANH)],
    "relu": [nn.ReLU, lambda: F.relu, lambda: torch.relu, lambda: Kept(torch.relu)],
    "sigmoid": [nn.Sigmoid, lambda: torch.sigmoid],
    "relu2": [SquaredRelu],
}


def own(model: nn.Module, x: Tensor) -> Tensor:
    result: Tensor = MLP.forward(model, x)  # type: ignore[arg-type]
    return result


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 6, dtype=torch.float64)


@pytest.mark.parametrize(("gate", "way"), [(g, w) for g in WAYS for w in range(len(WAYS[g]))])
def test_each_way_is_its_gate(gate: str, way: int, x: Tensor) -> None:
    model = MLP(WAYS[gate][way]()).double()
    fuse(model, strict=True)
    assert isinstance(model, FusedMLP)
    assert model.proof.activation.gate == gate
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for twin in (model, *copies):
        assert not twin.proof.broken_by(twin)
        torch.testing.assert_close(twin(x), own(twin, x))
    assert len(WAYS) == len(GATES)


def test_reading_is_for_the_identity(x: Tensor) -> None:
    model = MLP(nn.Identity()).double()
    for linear in (model.left, model.right, model.down):
        nn.init.zeros_(linear.bias)
    fuse(model, strict=True)
    q = model.interactions()  # type: ignore[operator]
    torch.testing.assert_close(torch.einsum("ni,oij,nj->no", x, q, x), model(x).detach())
    gated = MLP(nn.SiLU())
    fuse(gated, strict=True)
    with pytest.raises(ValueError, match="expected the identity gate, got silu"):
        gated.interactions()  # type: ignore[operator]


def exchange(model: Any) -> None:
    model.act = nn.Tanh()


def approximate(model: Any) -> None:
    model.act.approximate = "none"


def exchange_inside(model: Any) -> None:
    model.act.act = torch.tanh


def exchange_arguments(model: Any) -> None:
    model.act.act.keywords["approximate"] = "none"


def hook(model: Any) -> None:
    model.act.register_forward_hook(lambda module, args, out: 2 * out)


def set_forward(model: Any) -> None:
    model.act.forward = lambda x: 3 * x


LATER: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "another module": (nn.SiLU, exchange),
    "the other gelu": (lambda: nn.GELU("tanh"), approximate),
    "another function": (lambda: F.silu, lambda model: setattr(model, "act", torch.relu)),
    "a kept function": (lambda: Kept(F.silu), exchange_inside),
    "its arguments": (
        lambda: Kept(functools.partial(F.gelu, approximate="tanh")),
        exchange_arguments,
    ),
    "a hook": (nn.SiLU, hook),
    "a forward": (nn.SiLU, set_forward),
}


@pytest.mark.parametrize("change", LATER)
def test_an_activation_changed_later_takes_effect(change: str, x: Tensor) -> None:
    make, changes = LATER[change]
    model = MLP(make()).double()
    fuse(model, strict=True)
    before = model(x)
    changes(model)
    assert not torch.allclose(model(x), before)
    assert torch.equal(model(x), own(model, x))
    assert "exchanged" in str(explain(model))


PATCHED = {
    "silu": (F, nn.SiLU), "gelu": (F, nn.GELU), "relu": (torch, nn.ReLU),
    "sigmoid": (torch, nn.Sigmoid), "square": (torch, SquaredRelu),
}  # fmt: skip


@pytest.mark.parametrize("name", PATCHED)
def test_torchs_function_exchanged_later_takes_effect(
    name: str, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, make = PATCHED[name]
    model = MLP(make()).double()
    fuse(model, strict=True)
    before, function = model(x), getattr(where, name)
    monkeypatch.setattr(where, name, lambda *args, **more: 2 * function(*args, **more))
    assert not torch.allclose(model(x), before)
    assert torch.equal(model(x), own(model, x))
    assert f"{name} was exchanged" in str(explain(model))


def test_every_function_that_is_held_is_watched(x: Tensor) -> None:
    class Two(MLP):
        def __init__(self) -> None:
            super().__init__(F.silu)
            self.also = F.silu

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.right(x) * self.also(self.left(x)))

    model = Two().double()
    fuse(model, strict=True)
    model.also = F.gelu
    torch.testing.assert_close(model(x), Two.forward(model, x))
