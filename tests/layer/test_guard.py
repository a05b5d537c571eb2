"""The guard of every call answers as `Proof.broken_by` does, in about a microsecond."""

import copy
import functools
import time
import timeit
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from bilinear import fuse, reference
from bilinear.layer.guard import guard


class Gated(nn.Module):
    def __init__(self, act_fn: Any, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(6, 5, bias=bias), nn.Linear(6, 5, bias=bias)
        self.down_proj, self.act_fn = nn.Linear(5, 6, bias=bias), act_fn

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class TanhGelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = functools.partial(F.gelu, approximate="tanh")

    def forward(self, input: Tensor) -> Tensor:
        return self.act(input)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "identity": lambda: Gated(nn.Identity()),
    "silu": lambda: Gated(nn.SiLU(), bias=True),
    "gelu": lambda: Gated(nn.GELU("tanh")),
    "a held function": lambda: Gated(TanhGelu()),
    "a function": lambda: Gated(F.silu),
    "pair": lambda: reference.Model(reference.ModelConfig(3, 5, bias=True)),
    "layer": lambda: reference.Bilinear(6, 5, bias=True),
}


def part(model: nn.Module) -> nn.Module:
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


def last(model: nn.Module) -> tuple[nn.Module, str]:
    return model, list(model._modules)[-1]


def other_weight(model: nn.Module) -> None:
    class Loud(Tensor):
        pass

    part(model).weight = nn.Parameter(part(model).weight.detach().as_subclass(Loud))


def deleted(model: nn.Module) -> None:
    parent, name = last(model)
    delattr(parent, name)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "a hook": lambda m: part(m).register_forward_hook(lambda *_: None),
    "a pre-hook": lambda m: part(m).register_forward_pre_hook(lambda *_: None),
    "a backward hook": lambda m: part(m).register_full_backward_hook(lambda *_: None),
    "a backward pre-hook": lambda m: part(m).register_full_backward_pre_hook(lambda *_: None),
    "hooks in another dictionary": lambda m: setattr(part(m), "_forward_hooks", {1: print}),
    "a forward": lambda m: setattr(part(m), "forward", lambda x: x),
    "a class": lambda m: setattr(part(m), "__class__", type("Other", (type(part(m)),), {})),
    "another weight": other_weight,
    "no bias": lambda m: setattr(part(m), "bias", None),
    "a bias": lambda m: setattr(part(m), "bias", nn.Parameter(torch.ones(6))),
    "pruned": lambda m: prune.random_unstructured(part(m), "weight", amount=0.5),
    "weight norm": lambda m: parametrizations.weight_norm(part(m)),
    "spectral norm": lambda m: parametrizations.spectral_norm(part(m)),
    "a weight hidden": lambda m: part(m).__dict__.update(weight=torch.ones(6, 5)),
    "a child hidden": lambda m: last(m)[0].__dict__.update({last(m)[1]: print}),
    "a child added": lambda m: m.add_module("more", nn.Identity()),
    "a child deleted": deleted,
    "a parameter": lambda m: m.register_parameter("more", nn.Parameter(torch.ones(1))),
    "a buffer": lambda m: m.register_buffer("more", torch.ones(1)),
    "an activation": lambda m: setattr(m, "act_fn", nn.Tanh()),
    "an argument": lambda m: setattr(m.act_fn, "approximate", "none"),
    "an argument of a partial": lambda m: m.act_fn.act.keywords.update(approximate="none"),
    "another partial": lambda m: setattr(m.act_fn, "act", functools.partial(F.gelu)),
    "a function": lambda m: setattr(m, "act_fn", torch.tanh),
}
# Of a layer alone: its own hooks, forward and class are its caller's business.
OF_A_LAYER = ("another weight", "pruned", "a weight hidden")


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", MODELS)
def test_it_answers_as_the_reasons_do(kind: str) -> None:
    seen = set()
    for change in (None, *(OF_A_LAYER if kind == "layer" else CHANGES)):
        model = MODELS[kind]()
        fuse(model, strict=True)
        proof, held = model.proof, guard(model.proof)  # type: ignore[union-attr]
        weights = held(model)
        assert weights is not None
        assert all(a is b for a, b in zip(weights, proof.weights(model), strict=True))
        if change is None:
            assert held(copy.deepcopy(model)) is not None
            continue
        try:
            CHANGES[change](model)
        except (AttributeError, TypeError):
            continue  # the model has no such part, or a function where a child would be
        why = proof.broken_by(model)
        assert (held(model) is None) == bool(why), (change, why)
        seen.add(change if why else "harmless")
    assert len(seen) >= (3 if kind == "layer" else 15), seen


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_exchanged_in_torch(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS[kind]()
    fuse(model, strict=True)
    held = guard(model.proof)  # type: ignore[union-attr]
    exchanged: list[tuple[Any, str]] = [(F, "linear"), (nn.Linear, "forward")]
    exchanged += [(model.proof.old, "forward"), (nn.Module, "__call__")]
    for owner, name in exchanged:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda *args: args)
            assert held(model) is None, name
            assert model.proof.broken_by(model), name
        assert held(model) is not None
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert (held(model) is None) == (kind != "layer")
    handle.remove()


@pytest.mark.parametrize("kind", MODELS)
def test_it_costs_little(kind: str) -> None:
    model = MODELS[kind]()
    fuse(model, strict=True)
    held = guard(model.proof)  # type: ignore[union-attr]
    runs = timeit.repeat(lambda: held(model), number=2000, repeat=20, timer=time.thread_time)
    assert min(runs) / 2000 < 5e-6  # some 1 µs on a core that nothing shares
