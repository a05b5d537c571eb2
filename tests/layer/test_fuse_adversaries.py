"""Models on which a careless `fuse` would compute something else.

Each is equal to the unfused model or kept with a reason: before and after `fuse`, after a later
change of the model, and after `unfuse`.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from bilinear import explain, fuse, reference, unfuse
from bilinear.layer.fused_modules import Fused

D, HIDDEN = 8, 12
# What torch says when its compiler meets any autograd.Function.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


class Gated(nn.Module):
    """The formula, as Llama-family models write it."""

    def __init__(self, act_fn: Any = None) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(D, HIDDEN, bias=False)
        self.up_proj = nn.Linear(D, HIDDEN, bias=False)
        self.down_proj = nn.Linear(HIDDEN, D, bias=False)
        self.act_fn = nn.Identity() if act_fn is None else act_fn

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.down_proj(
            self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states)
        )


class Packed(nn.Module):
    """The packed pair, as Phi-3 writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(D, 2 * HIDDEN, bias=False)
        self.down_proj = nn.Linear(HIDDEN, D, bias=False)
        self.activation_fn = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(up * self.activation_fn(gate))


class HeldFunction(nn.Module):
    """An activation that keeps its function, as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.act = functools.partial(F.gelu, approximate="tanh")

    def forward(self, input: Tensor) -> Tensor:
        return self.act(input)


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(D, HIDDEN), nn.Linear(D, HIDDEN)
        self.head = nn.Linear(HIDDEN, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.left(x) * self.right(x))


class SquaredRelu(nn.Module):
    """The forward calls the activation as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(D, HIDDEN), nn.Linear(D, HIDDEN)
        self.head = nn.Linear(HIDDEN, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.square(F.relu(self.left(x))) * self.right(x))


class Pasted(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        left, right = super().forward(input).chunk(2, dim=-1)
        return left * right


class PastedSilu(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        left, right = super().forward(input).chunk(2, dim=-1)
        return right * F.silu(left)


class WordNamed(nn.Module):
    """A packed layer `w` and a projection `p`."""

    def __init__(self) -> None:
        super().__init__()
        self.w = Pasted(D, 2 * HIDDEN, bias=False)
        self.p = nn.Linear(HIDDEN, D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.p(self.w(x))


FUSABLE: dict[str, Callable[[], nn.Module]] = {
    "gated": Gated,
    "packed": Packed,
    "toy": Toy,
    "word-named": WordNamed,
    "pasted": lambda: Pasted(D, 2 * HIDDEN),
    "gated by a module": lambda: Gated(nn.GELU()),
    "gated by a held function": lambda: Gated(HeldFunction()),
    "gated by a function": lambda: Gated(torch.sigmoid),
    "gated inline": SquaredRelu,
    "pasted with silu": lambda: PastedSilu(D, 2 * HIDDEN),
    "sequential": lambda: nn.Sequential(reference.Bilinear(D, HIDDEN), nn.Linear(HIDDEN, D)),
    "reference": lambda: reference.Model(reference.ModelConfig(D // 2, HIDDEN, bias=True)),
}


@pytest.fixture(autouse=True)
def _functions(paths: Callable[..., None]) -> None:
    """Makes the few rows of these tests run the path of many rows."""
    paths(few=0)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, D, dtype=torch.float64, requires_grad=True)


def outcome(model: nn.Module, x: Tensor, *more: Any, **named: Any) -> list[Tensor]:
    """Output and gradients in float64, which must be equal fused and unfused."""
    out = model(x, *more, **named) if not named else model(*more, **named)
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    grads = torch.autograd.grad(out.square().sum(), wanted, allow_unused=True)
    return [out, *(torch.zeros(()) if g is None else g for g in grads)]


def assert_same(got: list[Tensor], want: list[Tensor]) -> None:
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert b.abs().max() > 0 or a.abs().max() == 0
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def is_fused(model: nn.Module) -> bool:
    return any(isinstance(module, Fused) for module in model.modules())


@pytest.mark.parametrize("kind", FUSABLE)
def test_what_is_the_formula_is_replaced(kind: str, x: Tensor) -> None:
    model = FUSABLE[kind]().double()
    want = outcome(model, x)
    state = {name: id(p) for name, p in model.named_parameters()}
    rng = torch.get_rng_state()
    report = fuse(model, strict=True)
    assert len(report.replaced) == 1, report
    assert torch.equal(torch.get_rng_state(), rng)
    assert is_fused(model)
    assert_same(outcome(model, x), want)
    assert {name: id(p) for name, p in model.named_parameters()} == state
    unfuse(model)
    assert not is_fused(model)
    assert all(torch.equal(a, b) for a, b in zip(outcome(model, x), want, strict=True))


# --- operations beside the formula that have no effect at the time of `fuse` ---------------------


class InlineSilu(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Scaled(Gated):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


class PlainScale(Gated):
    scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.gate_proj(x) * self.up_proj(x)) * self.scale


class Dropping(Gated):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(super().forward(x))


class ZeroAdapter(Gated):
    def __init__(self) -> None:
        super().__init__()
        self.adapter = nn.Linear(D, D, bias=False)
        nn.init.zeros_(self.adapter.weight)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.adapter(x)


class Clamped(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.gate_proj(x).clamp(-7, 7) * self.up_proj(x))


class Switched(Gated):
    on = False

    def forward(self, x: Tensor) -> Tensor:
        if self.on:
            return self.up_proj(x)
        return super().forward(x)


class Indexed(Gated):
    """Calls a child through a method of its own."""

    def gate(self, x: Tensor) -> Tensor:
        return self.gate_proj(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.gate(x) * self.up_proj(x))


GAIN = 1.0


class ReadsAGlobal(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.gate_proj(x) * self.up_proj(x)) * GAIN


class Grandparent(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x is not None else x


class WrongDim(Packed):
    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2)
        return self.down_proj(up * gate)


class Same(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.gate_proj(x) * self.gate_proj(self.up_proj(x)))


class Unused(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.gate_proj(x) * self.gate_proj(x))


class Counter(Gated):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.down_proj(self.gate_proj(x) * self.up_proj(x))


class Tanh(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(torch.tanh(self.gate_proj(x)) * self.up_proj(x))


class SiluLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


class Buffered(Gated):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(D))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.mask


class NoGrad(Gated):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.gate_proj(x) * self.up_proj(x))


class Autocast(Gated):
    @torch.autocast("cpu", dtype=torch.bfloat16)
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.gate_proj(x) * self.up_proj(x))


class SetsTheGradientMode(Gated):
    def forward(self, x: Tensor) -> Tensor:
        torch.set_grad_enabled(False)
        return self.down_proj(self.gate_proj(x) * self.up_proj(x))


class ChoosesByTraining(Gated):
    def forward(self, x: Tensor) -> Tensor:
        chosen = (self.gate_proj, self.up_proj)[self.down_proj.training]
        return self.down_proj(chosen(x) * self.up_proj(x))


class NoHeirs(Gated):
    def __init_subclass__(cls, key: int) -> None:
        super().__init_subclass__()

    def forward(self, x: Tensor) -> Tensor:
        gate = self.act_fn(self.gate_proj(x))
        return self.down_proj(gate * self.up_proj(x))


class Quick(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return input * torch.sigmoid(1.702 * input)


class ClippedSilu(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return F.silu(input.clamp(max=7.0))


class OwnSiLU(nn.SiLU):
    pass


class HeldProduct(Gated):
    def __init__(self) -> None:
        super().__init__(nn.SiLU())
        self.combine = torch.mul

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.combine(self.act_fn(self.gate_proj(x)), self.up_proj(x)))


class GatesTheSecondHalf(Packed):
    def __init__(self) -> None:
        super().__init__()
        self.activation_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        up, gate = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(up * self.activation_fn(gate))


class GatesBoth(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.act_fn(self.up_proj(x)))


class ClampedAsGptOss(nn.Module):
    """Gate and up clamped, the gate scaled inside of its sigmoid, one added to up."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(D, 2 * HIDDEN)
        self.down_proj = nn.Linear(HIDDEN, D)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        gate, up = gate.clamp(max=7.0), up.clamp(min=-7.0, max=7.0)
        return self.down_proj((up + 1) * gate * torch.sigmoid(1.702 * gate))


def with_silu_part() -> nn.Module:
    model = Gated()
    model.gate_proj = SiluLinear(D, HIDDEN, bias=False)
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "an activation that is not called": (InlineSilu, "it also has act_fn (Identity)"),
    "another activation": (lambda: Gated(nn.Tanh()), "act_fn is Tanh, which is not known to be"),
    "an activation's heir": (lambda: Gated(OwnSiLU()), "act_fn is OwnSiLU, which is not known"),
    "quick gelu": (lambda: Gated(Quick()), "act_fn is Quick, which is not known"),
    "a clipped activation": (lambda: Gated(ClippedSilu()), "act_fn is ClippedSilu"),
    "a learned activation": (lambda: Gated(nn.PReLU()), "act_fn is PReLU, which is not known"),
    "a product it holds": (HeldProduct, "reads self.combine, which may change"),
    "the second half gated": (GatesTheSecondHalf, "silu to the second half"),
    "both gated": (lambda: GatesBoth(nn.SiLU()), "not a product of two linears"),
    "GPT-OSS's clamps": (ClampedAsGptOss, "clamp"),
    "a lambda": (lambda: Gated(lambda y: y), "reads self.act_fn"),
    "a parameter of one": (Scaled, "scale"),
    "an attribute of one": (PlainScale, "scale"),
    "dropout of none": (Dropping, "dropout"),
    "an adapter of zeros": (ZeroAdapter, "adapter"),
    "a clamp": (Clamped, "clamp"),
    "a switch that is off": (Switched, "on, which may change"),
    "a method": (Indexed, "reads self.gate"),
    "a global": (ReadsAGlobal, "GAIN"),
    "a branch": (Grandparent, "branches"),
    "another dimension": (WrongDim, "chunk"),
    "a part of a part": (Same, "not a product of two linears"),
    "an unused part": (Unused, "up_proj"),
    "state of its own": (Counter, "calls"),
    "tanh": (Tanh, "tanh"),
    "a linear with silu": (with_silu_part, "gate_proj is a SiluLinear"),
    "a buffer": (Buffered, "mask"),
    "no_grad": (NoGrad, "decorated"),
    "autocast": (Autocast, "decorated"),
    "the gradient mode": (SetsTheGradientMode, "set_grad_enabled"),
    "a choice by training": (ChoosesByTraining, "training"),
    "a class without heirs": (NoHeirs, "cannot be derived from"),
}
FILLS: dict[str, Callable[[nn.Module], None]] = {
    "as drawn": lambda model: None,
    "zeros": lambda model: _fill(model, 0.0),
    "NaN": lambda model: _fill(model, torch.nan),
    "tiny, in bfloat16": lambda model: _tiny(model),
}


@torch.no_grad()
def _fill(model: nn.Module, value: float) -> None:
    for parameter in model.parameters():
        parameter.fill_(value)


@torch.no_grad()
def _tiny(model: nn.Module) -> None:
    for parameter in model.bfloat16().parameters():
        parameter.mul_(1e-3)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_the_formula_is_kept_whatever_its_weights(kind: str, fill: str) -> None:
    make, why = REFUSED[kind]
    model = nn.Sequential(nn.Identity(), make())
    FILLS[fill](model)
    old, rng = type(model[1]), torch.get_rng_state()
    report = fuse(model)
    assert not report.replaced, report
    assert [name for name, _ in report.kept] == ["1"]
    assert why in report.kept[0][1], report
    assert type(model[1]) is old
    assert torch.equal(torch.get_rng_state(), rng)
    with pytest.raises(ValueError, match="every candidate"):
        fuse(model, strict=True)


# --- what is done to a model after `fuse` --------------------------------------------------------


class Adapter(nn.Module):
    """Like PEFT's: keeps the old linear, exposes its weight, adds a low-rank term."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_a = nn.Linear(base.in_features, 2, bias=False, dtype=torch.float64)
        self.lora_b = nn.Linear(2, base.out_features, bias=False, dtype=torch.float64)

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    bias = None

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_b(self.lora_a(x))


def first_linear(model: nn.Module) -> tuple[nn.Module, str]:
    """The parent and the name of the first plain linear."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                return parent, name
    raise AssertionError("no linear")


def adapt(model: nn.Module) -> None:
    parent, name = first_linear(model)
    torch.manual_seed(1)
    setattr(parent, name, Adapter(getattr(parent, name)))


def hook(model: nn.Module) -> None:
    parent, name = first_linear(model)
    getattr(parent, name).register_forward_hook(lambda module, args, out: 2 * out)


def pre_hook(model: nn.Module) -> None:
    parent, name = first_linear(model)
    getattr(parent, name).register_forward_pre_hook(lambda module, args: (args[0] + 1,))


def set_forward(model: nn.Module) -> None:
    parent, name = first_linear(model)
    part = getattr(parent, name)
    part.forward = functools.partial(lambda old, x: old(x) + 1, part.forward)


def set_forward_of_the_whole(model: nn.Module) -> None:
    model.forward = functools.partial(lambda old, x: old(x) + 1, model.forward)


def spectral(model: nn.Module) -> None:
    parent, name = first_linear(model)
    torch.manual_seed(2)
    parametrizations.spectral_norm(getattr(parent, name).eval())


def weight_norm(model: nn.Module) -> None:
    parent, name = first_linear(model)
    parametrizations.weight_norm(getattr(parent, name))
    with torch.no_grad():
        getattr(parent, name).parametrizations.weight.original0.mul_(3)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrized(model: nn.Module) -> None:
    parent, name = first_linear(model)
    parametrize.register_parametrization(getattr(parent, name), "weight", Doubled())


def pruned(model: nn.Module) -> None:
    parent, name = first_linear(model)
    prune.random_unstructured(getattr(parent, name), "weight", amount=0.5)


def other_class(model: nn.Module) -> None:
    parent, name = first_linear(model)
    getattr(parent, name).__class__ = Offset


class Offset(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def new_bias(model: nn.Module) -> None:
    parent, name = first_linear(model)
    part = getattr(parent, name)
    torch.manual_seed(4)
    part.bias = nn.Parameter(torch.randn(part.out_features, dtype=torch.float64))


def bias_of_the_second(model: nn.Module) -> None:
    linears = [m for m in model.modules() if type(m) is nn.Linear]
    part = linears[1] if len(linears) > 2 else linears[-1]
    torch.manual_seed(4)
    part.bias = nn.Parameter(torch.randn(part.out_features, dtype=torch.float64))


def subclass_weight(model: nn.Module) -> None:
    parent, name = first_linear(model)
    part = getattr(parent, name)
    weight = part.weight.detach().as_subclass(Loud)
    part.weight = nn.Parameter(weight)


class Loud(Tensor):
    """A tensor that linears see twice as large, as a quantised one is seen dequantised."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func is F.linear:
                return 2 * func(*args, **(kwargs or {})).as_subclass(Tensor)
            found = func(*args, **(kwargs or {}))
            return found.as_subclass(cls) if func is Tensor.detach else found


CHANGES = {
    change.__name__: change
    for change in (
        adapt, hook, pre_hook, set_forward, set_forward_of_the_whole, spectral, weight_norm,
        parametrized, pruned, other_class, subclass_weight, new_bias, bias_of_the_second,
    )
}  # fmt: skip
WITH_PARTS = [kind for kind in FUSABLE if not kind.startswith("pasted")]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", WITH_PARTS)
def test_a_change_after_fuse_takes_effect_and_is_said(kind: str, change: str, x: Tensor) -> None:
    plain = FUSABLE[kind]().double()
    fused = copy.deepcopy(plain)
    fuse(fused, strict=True)
    unchanged = outcome(plain, x)[0]
    for model in (plain, fused):
        torch.manual_seed(3)
        CHANGES[change](model)
    want = outcome(plain, x)
    assert (want[0] - unchanged).abs().max() > 1e-3  # the change alters the output
    assert_same(outcome(fused, x), want)
    if change != "set_forward_of_the_whole":
        name = first_linear(plain)[1] if change in ("hook", "pre_hook") else ""
        said = str(explain(fused))
        exchanged = [
            part for part in fused.modules() if type(part) is nn.Linear and part.bias is None
        ]
        assert "own forward" in said or ("bias" in change and not exchanged)
        assert name in said
        unfuse(fused)
        assert not is_fused(fused)
    else:
        assert "set on the instance after fuse" in str(unfuse(fused))
    assert_same(outcome(fused, x), want)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", WITH_PARTS)
def test_a_change_before_fuse_is_kept(kind: str, change: str, x: Tensor) -> None:
    model = FUSABLE[kind]().double()
    torch.manual_seed(3)
    CHANGES[change](model)
    want = outcome(model, x)
    report = fuse(model)
    assert report.kept or "bias" in change, report
    assert_same(outcome(model, x), want)
    unfuse(model)
    assert_same(outcome(model, x), want)


def test_a_part_exchanged_or_added_later(x: Tensor) -> None:
    model = Gated().double()
    fuse(model, strict=True)
    model.act_fn = nn.SiLU()
    want = model.down_proj(F.silu(model.gate_proj(x)) * model.up_proj(x))
    torch.testing.assert_close(model(x), want)
    assert "activation act_fn was exchanged" in str(explain(model))
    model.act_fn = nn.Identity()
    model.adapter = nn.Linear(D, D)
    assert "adapter was added" in str(explain(model))


def test_the_class_changed_later(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Gated().double()
    fuse(model, strict=True)
    plain = model(x)
    monkeypatch.setattr(Gated, "forward", lambda self, y: self.up_proj(y))
    assert torch.equal(model(x), model.up_proj(x))
    monkeypatch.undo()
    torch.testing.assert_close(model(x), plain)
    monkeypatch.setattr(nn.Linear, "forward", lambda self, y: 2 * F.linear(y, self.weight))
    torch.testing.assert_close(model(x), 8 * plain)


def test_a_forward_that_was_read_exchanged_later(
    x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Heir(Gated):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    heir, pasted = Heir().double(), Pasted(D, 2 * HIDDEN).double()
    for model in (heir, pasted):
        fuse(model, strict=True)
    monkeypatch.setattr(Gated, "forward", lambda self, y: self.up_proj(y))
    assert torch.equal(heir(x), heir.up_proj(x))
    monkeypatch.undo()
    monkeypatch.setattr(
        nn.Linear, "forward", lambda self, y: 2 * F.linear(y, self.weight, self.bias)
    )
    torch.testing.assert_close(pasted(x), Pasted.forward(pasted, x))
    monkeypatch.undo()
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda *args: 2 * linear(*args))
    for model in (heir, pasted):
        assert torch.equal(model(x), type(model).proof.old.forward(model, x))


def test_a_forward_that_an_heir_gets_later(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    class Heir(Gated):
        pass

    class Calls(Heir):
        def forward(self, hidden_states: Tensor) -> Tensor:
            return super().forward(hidden_states)

    heirs = Heir().double(), Calls().double()
    for model in heirs:
        fuse(model, strict=True)
    monkeypatch.setattr(Heir, "forward", lambda self, y: self.up_proj(y), raising=False)
    for model in heirs:
        assert torch.equal(model(x), model.up_proj(x))
        assert "the forward of Heir was exchanged" in str(explain(model))


@pytest.mark.parametrize("kind", FUSABLE)
def test_torch_fx_sees_the_parts(kind: str, x: Tensor) -> None:
    plain = FUSABLE[kind]().double()
    fused = copy.deepcopy(plain)
    fuse(fused, strict=True)
    plain, fused = nn.Sequential(plain), nn.Sequential(fused)
    traced = [torch.fx.symbolic_trace(model) for model in (plain, fused)]
    operations = [[node.target for node in one.graph.nodes] for one in traced]
    assert operations[0] == operations[1]
    assert torch.equal(traced[1](x), plain(x))


def test_a_class_derived_after_fuse_is_not_undone(x: Tensor) -> None:
    sharded = Gated().double()
    fuse(sharded, strict=True)
    sharded.__class__ = type("Sharded", (type(sharded),), {"extra": 1})
    assert "made after fuse" in str(unfuse(sharded))
    assert sharded.extra == 1
    layer = Pasted(D, 2 * HIDDEN).double()
    fuse(layer, strict=True)
    parametrize.register_parametrization(layer, "weight", Doubled())
    want = Pasted.forward(layer, x)
    torch.testing.assert_close(layer(x), want)
    assert "made after fuse" in str(unfuse(layer))
    torch.testing.assert_close(layer(x), want)
    parametrize.remove_parametrizations(layer, "weight")
    assert len(unfuse(layer).replaced) == 1
    torch.testing.assert_close(layer(x), want)


@pytest.mark.parametrize("change", ["adapt", "set_forward", "bias_of_the_second"])
def test_compiled_before_a_change(change: str, x: Tensor) -> None:
    model = Gated().double()
    fuse(model, strict=True)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    CHANGES[change](model)
    torch.testing.assert_close(compiled(x), model(x))


def test_a_hook_on_all_modules_fires(x: Tensor) -> None:
    model, seen = Gated().double(), []
    fuse(model, strict=True)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: seen.append(1))
    try:
        model(x)
        assert len(seen) == 5
        assert "hook is set on all modules" in str(explain(model))
    finally:
        handle.remove()


def test_calls_as_the_old_forward_takes_them(x: Tensor) -> None:
    class More(Gated):
        def forward(self, hidden_states: Tensor, unused: Any = None) -> Tensor:
            gate = self.act_fn(self.gate_proj(hidden_states))
            return self.down_proj(gate * self.up_proj(hidden_states))

    for make in (Gated, More):
        model = make().double()
        want = model(x)
        fuse(model, strict=True)
        torch.testing.assert_close(model(hidden_states=x), want)
        with pytest.raises(TypeError, match="unexpected keyword"):
            model(x, other=1)
        with pytest.raises(TypeError, match="missing"):
            model()
    torch.testing.assert_close(model(x, 3), want)
    torch.testing.assert_close(model(x, unused=3), want)


def test_tied_parts_and_shared_modules(x: Tensor) -> None:
    tied = Gated().double()
    tied.up_proj = tied.gate_proj
    shared = Toy().double()
    model = nn.Sequential(tied, shared, shared)
    want = outcome(model, x)
    assert len(fuse(model, strict=True).replaced) == 2
    assert_same(outcome(model, x), want)


@pytest.mark.parametrize("kind", FUSABLE)
def test_functional_calls_see_the_given_parameters(kind: str, x: Tensor) -> None:
    plain = FUSABLE[kind]().double()
    fused = copy.deepcopy(plain)
    fuse(fused, strict=True)
    doubled = {name: 2 * p.detach() for name, p in plain.named_parameters()}
    want = torch.func.functional_call(plain, doubled, (x,))
    torch.testing.assert_close(torch.func.functional_call(fused, doubled, (x,)), want)

    def run(model: nn.Module) -> Tensor:
        models = [copy.deepcopy(model) for _ in range(3)]
        for i, one in enumerate(models):
            for p in one.parameters():
                p.data.mul_(i + 1)
        params, buffers = torch.func.stack_module_state(models)
        base = copy.deepcopy(model).to("meta")
        call = torch.func.vmap(lambda p, b: torch.func.functional_call(base, (p, b), (x,)))
        return call(params, buffers)

    torch.testing.assert_close(run(fused), run(plain))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["gated", "packed", "toy"])
def test_dynamic_quantisation_after_fuse(kind: str) -> None:
    plain = FUSABLE[kind]()
    fused = copy.deepcopy(plain)
    fuse(fused, strict=True)
    x = torch.randn(5, D)
    found = [
        torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)(x)
        for model in (plain, fused)
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", FUSABLE)
def test_compiled_in_one_graph(kind: str, x: Tensor) -> None:
    model = FUSABLE[kind]().double()
    want = outcome(model, x)
    fuse(model, strict=True)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(outcome(compiled, x), want)
    parts = [m for m in model.modules() if type(m) is nn.Linear]
    if parts:  # a later change must recompile
        adapt(model)
        torch._dynamo.reset()
        want = outcome(model, x)
        assert_same(outcome(torch.compile(model, backend="aot_eager"), x), want)


def test_models_on_no_device_are_fused_and_loaded_later(x: Tensor) -> None:
    with torch.device("meta"):
        model = Gated().double()
    fuse(model, strict=True)
    plain = Gated().double()
    model.load_state_dict(plain.state_dict(), assign=True)
    torch.testing.assert_close(model(x), plain(x))


@pytest.mark.parametrize("what", [None, torch.zeros(3), "model", nn.Linear])
def test_what_is_no_module_is_refused(what: Any) -> None:
    for call in (fuse, unfuse):
        with pytest.raises(TypeError, match=r"model: expected an nn\.Module, got"):
            call(what)


def test_candidates_are_named_with_what_to_do() -> None:
    class NeoX(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense_h_to_4h, self.dense_4h_to_h = nn.Linear(D, 32), nn.Linear(32, D)
            self.act = nn.GELU()

        def forward(self, x: Tensor) -> Tensor:
            return self.dense_4h_to_h(self.act(self.dense_h_to_4h(x)))

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.randn(4, D, 2 * HIDDEN))
            self.down_proj = nn.Parameter(torch.randn(4, HIDDEN, D))

    adapted = Gated()
    adapted.up_proj = Adapter(adapted.up_proj)
    kinds = {"neox": NeoX(), "experts": Experts(), "two": nn.Bilinear(D, D, 3), "lora": adapted}
    report = fuse(nn.ModuleDict(kinds))
    assert not report.replaced
    said = dict(report.kept)
    assert set(said) == set(kinds)
    assert "not a product of two linears" in said["neox"]
    assert "gate_up_proj" in said["experts"]
    assert "two inputs" in said["two"]
    assert "up_proj is a Adapter" in said["lora"]
