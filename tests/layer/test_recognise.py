"""Which modules are candidates for `fuse`, and each check that one must pass to be replaced.

The comparison by numbers (`probe.py`) is switched off where a module must be refused, so that the
check under test refuses alone.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from written import gated, written

from bilinear import Bilinear, BilinearMLP, fuse, reference, unfuse
from bilinear.layer import recognise

FORMULA = "return self.down(self.l(x) * self.r(x))"
OF_PACKED = "l, r = self.w(x).chunk(2, -1)\nreturn self.down(l * r)"


@pytest.fixture
def by_reading_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognise, "difference", lambda *_: "")


def reason(module: nn.Module) -> str:
    """Why `fuse` keeps a module; empty if it replaces it or passes it over."""
    report = fuse(module)
    assert len(report.kept) + len(report.replaced) <= 1
    return report.kept[0][1] if report.kept else ""


@pytest.mark.parametrize(
    "name",
    ["gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w2", "w3", "bi_linear",
     "dense_h_to_4h", "fc1", "c_fc"],
)  # fmt: skip
def test_a_gated_or_packed_name_is_reported(name: str) -> None:
    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    child, parameter = Other(), Other()
    child.add_module(name, nn.Tanh())
    parameter.register_parameter(name, nn.Parameter(torch.ones(2, 2)))
    assert f"{name} is a Tanh" in reason(child)
    assert f"it has {name}, a parameter" in reason(parameter)
    assert reason(nn.Sequential(nn.Linear(3, 3), nn.Tanh())) == ""


def test_what_is_called_bilinear_is_reported() -> None:
    class MyBilinearThing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    assert "not a product of two linears" in reason(MyBilinearThing())
    for ours in (Bilinear(3, 2), BilinearMLP(3, 2, 4)):
        report = fuse(ours)
        assert not report.kept
        assert not report.replaced
    model = gated(FORMULA)
    assert len(fuse(model).replaced) == 1
    again = fuse(model)
    assert not again.kept
    assert not again.replaced


def test_a_child_that_is_none() -> None:
    module = gated(FORMULA)
    module.register_module("none", None)
    assert "it also has none (NoneType)" in reason(module)
    module = nn.Sequential(nn.Identity())
    module.register_module("none", None)
    assert reason(module) == ""
    module = nn.Sequential()
    module.register_module("none", None)
    module.register_module("down", nn.Linear(6, 4))
    assert reason(module) == ""


def test_a_hook_on_all_modules_is_a_reason() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert reason(gated(FORMULA)) == "a hook is set on all modules"
    finally:
        handle.remove()


def test_products_of_more_linears_or_children_are_no_candidates() -> None:
    four = gated("return self.down(self.l(x) * self.r(x) * self.s(x))", more="self.s = self.l")
    assert "not a product of two linears" not in reason(four)
    five = gated(FORMULA, more="self.a, self.b = nn.Identity(), nn.Identity()")
    assert reason(five) == ""
    assert "it also has a (Identity)" in reason(gated(FORMULA, more="self.a = nn.Identity()"))


def with_weight() -> nn.Module:
    module = gated(FORMULA)
    module.weight = nn.Parameter(torch.ones(()))
    return module


def with_buffer() -> nn.Module:
    module = gated(FORMULA)
    module.register_buffer("kept", torch.ones(()))
    return module


def with_experts() -> nn.Module:
    module = gated(FORMULA)
    module.experts = nn.Parameter(torch.ones(2, 3, 4))
    return module


def with_attribute(name: str) -> nn.Module:
    module = gated(FORMULA)
    setattr(module, name, 1)
    return module


def with_left(linear: nn.Linear, body: str = FORMULA) -> nn.Module:
    module = gated(body)
    module.l = linear.double()
    return module


def with_packed(linear: nn.Linear) -> nn.Module:
    module = gated(OF_PACKED, packed=True)
    module.w = linear.double()
    return module


def with_forward_of_its_own(hooked: bool) -> nn.Module:
    module = gated(FORMULA)
    module.forward = module.forward
    if hooked:
        module._hf_hook = object()  # what accelerate's `add_hook_to_module` leaves
    return module


class Stateful(nn.Module):
    """silu with a buffer, which a later version of its forward could read."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


ACT = "self.act = nn.SiLU()"


def with_activation(activation: nn.Module) -> nn.Module:
    module = gated("return self.down(self.act(self.l(x)) * self.r(x))", more=ACT)
    module.act = activation
    return module


KEPT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a parameter called weight": (with_weight, "it has weight, a parameter or buffer"),
    "a buffer": (with_buffer, "it has kept, a parameter or buffer"),
    "experts": (with_experts, "experts is one tensor of many experts"),
    "proof": (lambda: with_attribute("proof"), "it has an attribute proof"),
    "recompute": (lambda: with_attribute("recompute"), "it has an attribute recompute"),
    "a forward of its own": (lambda: with_forward_of_its_own(False), "set on the instance"),
    "accelerate's hook": (lambda: with_forward_of_its_own(True), "accelerate's hook"),
    "a factor that is broadcast": (
        lambda: with_left(nn.Linear(5, 1, bias=False)), "l and r differ in shape"
    ),
    "one bias of two": (lambda: with_left(nn.Linear(5, 6)), "only one of l and r has a bias"),
    "an odd pack": (
        lambda: with_packed(nn.Linear(5, 11)), "w.weight has 11 rows, not twice the 6 inputs"
    ),
    "one half twice": (
        lambda: gated("l, r = self.w(x).chunk(2, -1)\nreturn self.down(l * l)", packed=True),
        "not a product of two linears",
    ),
    "halves of two packs": (
        lambda: gated(
            "l, r = self.w(x).chunk(2, -1)\ns, t = self.v(x).chunk(2, -1)\n"
            "return self.down(l * t)", more="self.v = nn.Linear(5, 12)", packed=True
        ),
        "not a product of two linears",
    ),
    "halves of a later tensor": (
        lambda: gated(
            "l, r = self.w(self.u(x)).chunk(2, -1)\nreturn self.down(l * r)",
            more="self.u = nn.Linear(5, 5)", packed=True,
        ),
        "not a product of two linears",
    ),
    "a factor of a later tensor": (
        lambda: gated(
            "return self.down(self.l(self.act(x)) * self.r(x))", more="self.act = nn.Identity()"
        ),
        "not a product of two linears",
    ),
    "the second half gated": (
        lambda: gated(
            "l, r = self.w(x).chunk(2, -1)\nreturn self.down(l * self.act(r))",
            more=ACT, packed=True,
        ),
        "it applies silu to the second half",
    ),
    "an activation after the product": (
        lambda: gated("return self.down(self.act(self.l(x) * self.r(x)))", more=ACT),
        "not a product of two linears of its input, projected; it calls act (SiLU)",
    ),
    "a function of no gate": (
        lambda: gated("return self.down(torch.tanh(self.l(x)) * self.r(x))"),
        "its activation tanh is none of identity, silu",
    ),
    "an activation with state": (
        lambda: with_activation(Stateful()), "act is Stateful, which is not known"
    ),
}  # fmt: skip


@pytest.mark.usefixtures("by_reading_alone")
@pytest.mark.parametrize("kind", KEPT)
def test_a_module_that_is_kept(kind: str) -> None:
    make, why = KEPT[kind]
    assert why in reason(make())


@pytest.mark.usefixtures("by_reading_alone")
@pytest.mark.parametrize(
    ("whole", "product"),
    [("super().forward(x)", "l * l"), ("super().forward(F.silu(x))", "l * r")],
)
def test_a_layer_that_is_kept(whole: str, product: str) -> None:
    source = (
        "class Written(nn.Linear):\n    def forward(self, x):\n"
        f"        l, r = {whole}.chunk(2, -1)\n        return {product}"
    )
    assert "not a product of two linears" in reason(written(source)(5, 12))


class Quiet(nn.Module):
    """A user's own identity."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


REPLACED: dict[str, Callable[[], nn.Module]] = {
    "halves the other way": lambda: gated(
        "l, r = self.w(x).chunk(2, -1)\nreturn self.down(r * l)", packed=True
    ),
    "the right factor gated": lambda: gated(
        "return self.down(self.l(x) * self.act(self.r(x)))", more=ACT
    ),
    "one linear twice": lambda: gated("return self.down(self.l(x) * self.l(x))", more="del self.r"),
    "linears with biases": lambda: gated(FORMULA, bias=True),
    "a layer and a projection": lambda: nn.Sequential(reference.Bilinear(5, 6), nn.Linear(6, 4)),
}


@pytest.mark.parametrize("kind", REPLACED)
def test_a_module_that_is_replaced(kind: str) -> None:
    model = REPLACED[kind]().double()
    x = torch.randn(3, 5, dtype=torch.float64)
    want = model(x)
    assert len(fuse(model, strict=True).replaced) == 1
    torch.testing.assert_close(model(x), want, rtol=1e-10, atol=1e-12)
    unfuse(model)
    assert torch.equal(model(x), want)


@pytest.mark.parametrize(("activation", "gate"), [(Quiet, "identity"), (Swish, "silu")])
def test_somebodys_own_activation_of_a_known_gate(activation: Any, gate: str) -> None:
    model = with_activation(activation())
    x = torch.randn(3, 5, dtype=torch.float64)
    want = model(x)
    assert len(fuse(model, strict=True).replaced) == 1
    assert model.proof.activation.gate == gate  # type: ignore[union-attr]
    torch.testing.assert_close(model(x), want, rtol=1e-10, atol=1e-12)


def test_numbers_that_differ_refuse_what_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognise, "difference", lambda *_: "its numbers differ")
    assert reason(gated(FORMULA)) == "its numbers differ"
