"""Put the fused layer into a model that has the plain one, and take it out again.

A module's class is exchanged, nothing else: Parameters, names, hooks and `state_dict` stay the
very same objects. What a module computes is not guessed from its names alone: its own forward is
run on a few random rows, and it is replaced only if the fused formula gives the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bilinear import reference
from bilinear.layer import eager
from bilinear.layer.functional import bilinear_mlp
from bilinear.layer.modules import Bilinear, BilinearMLP, has_hooks, pair_forward

# Child names under which gated MLPs keep (gate, up, down), and pairs (packed, projection).
GATED = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), ("gate", "up", "down"))
PAIRS = (("bi_linear", "projection"), ("gate_up_proj", "down_proj"))
ACTIVATIONS = ("act_fn", "activation_fn", "act", "activation", "hidden_act")
# Rows a probe runs, and the error allowed it relative to the largest output.
_PROBE_ROWS = 3
_PROBE_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4}
_HALF_TOLERANCE = 3e-2


@dataclass(frozen=True)
class FuseReport:
    """What `fuse` or `unfuse` did: (module name, old class, new class), and (name, why not)."""

    replaced: list[tuple[str, str, str]] = field(default_factory=list)
    kept: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        """One line a module."""
        lines = [f"replaced {len(self.replaced)}, kept {len(self.kept)}"]
        lines += [f"  {name}: {old} -> {new}" for name, old, new in self.replaced]
        lines += [f"  {name}: kept, {why}" for name, why in self.kept]
        return "\n".join(lines)


class FusedBilinear(Bilinear):
    """A reference-style Bilinear that `fuse` found; `unfuse` gives it its class back."""


class FusedPair(nn.Module):
    """A packed linear and a projection that `fuse` found, run as one op."""

    _parts: tuple[str, str]
    recompute: bool

    def forward(self, x: Tensor) -> Tensor:
        """(…, d_in) → (…, d_out)."""
        return pair_forward(self.packed, self.projection_part, x, self.recompute)

    @property
    def packed(self) -> nn.Linear:
        """The linear with both halves."""
        part: nn.Linear = getattr(self, self._parts[0])
        return part

    @property
    def projection_part(self) -> nn.Linear:
        """The linear after the product."""
        part: nn.Linear = getattr(self, self._parts[1])
        return part

    @property
    def w_l(self) -> Tensor:
        """Left weights, (d, d_in)."""
        return self.packed.weight.chunk(2, dim=0)[0]

    @property
    def w_r(self) -> Tensor:
        """Right weights, (d, d_in)."""
        return self.packed.weight.chunk(2, dim=0)[1]

    @property
    def w_p(self) -> Tensor:
        """Projection weights, (d_out, d)."""
        return self.projection_part.weight


class FusedGatedMLP(nn.Module):
    """Gate, up and down linears with an identity activation that `fuse` found, run as one op.

    Gate and up stay two Parameters: they are packed on every call, which costs one copy of them.
    """

    _parts: tuple[str, str, str]
    recompute: bool

    def forward(self, x: Tensor) -> Tensor:
        """(…, d_in) → (…, d_out)."""
        gate, up, down = self.linears
        if has_hooks(gate) or has_hooks(up) or has_hooks(down):
            hooked: Tensor = down(gate(x) * up(x))
            return hooked
        weight = torch.cat((gate.weight, up.weight))
        bias = None if gate.bias is None else torch.cat((gate.bias, up.bias))
        return bilinear_mlp(x, weight, down.weight, bias, down.bias, recompute=self.recompute)

    @property
    def linears(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        """Gate, up and down."""
        gate, up, down = (getattr(self, name) for name in self._parts)
        return gate, up, down


def fuse(model: nn.Module, *, recompute: bool = False) -> FuseReport:
    """Replace, in place, the bilinear parts of a model by fused ones that share its Parameters.

    Replaced are reference-style Bilinear layers, Bilinear (or packed gate-and-up) plus projection
    pairs, and gated MLPs with an identity activation, as Llama-family models with
    `hidden_act="linear"` have. `recompute` is that of `layer.functional`. Fuse before wrapping
    in DDP or FSDP. A replaced module is no longer an instance of its old class until `unfuse`.
    """
    report = FuseReport()
    inside_fused: set[int] = set()
    for name, module in model.named_modules():
        label = name or "(the model itself)"
        if id(module) in inside_fused or isinstance(module, Bilinear | BilinearMLP):
            continue
        if isinstance(module, FusedPair | FusedGatedMLP):
            inside_fused.update(id(child) for child in module.modules())
            continue
        found = _recognise(module)
        if found is None:
            continue
        if found.refusal:
            report.kept.append((label, found.refusal))
            continue
        old = type(module)
        _exchange(module, found, recompute)
        inside_fused.update(id(child) for child in module.modules())
        report.replaced.append((label, old.__name__, type(module).__name__))
    return report


def unfuse(model: nn.Module) -> FuseReport:
    """Give every module that `fuse` replaced its own class back, in place."""
    report = FuseReport()
    for name, module in model.named_modules():
        old = module.__dict__.get("_unfused")
        if old is None:
            continue
        new = type(module).__name__
        for attribute in ("_unfused", "_parts", "recompute"):
            module.__dict__.pop(attribute, None)
        module.__class__ = old
        report.replaced.append((name or "(the model itself)", new, old.__name__))
    return report


@dataclass(frozen=True)
class _Found:
    fused: type[nn.Module]
    children: tuple[str, ...] = ()
    refusal: str = ""


def _recognise(module: nn.Module) -> _Found | None:
    if isinstance(module, nn.Linear):
        return _recognise_bilinear(module)
    for names in GATED:
        if all(isinstance(getattr(module, name, None), nn.Linear) for name in names):
            return _recognise_gated(module, names)
    for pair in PAIRS:
        if all(isinstance(getattr(module, name, None), nn.Linear) for name in pair):
            return _recognise_pair(module, pair)
    return None


def _recognise_bilinear(module: nn.Linear) -> _Found | None:
    own = type(module).forward is not nn.Linear.forward
    if not own or module.weight.dim() != 2 or module.weight.shape[0] % 2:
        return None
    if type(module).forward is reference.Bilinear.forward:
        return _Found(FusedBilinear)
    named = "bilinear" in type(module).__name__.lower()

    def expected(x: Tensor) -> Tensor:
        return eager.bilinear(x, module.weight, module.bias)

    refusal = _difference(module, module.weight, expected)
    # Other subclasses of nn.Linear are none of ours, and not worth a line of the report.
    return _Found(FusedBilinear, refusal=refusal) if named or not refusal else None


def _recognise_pair(module: nn.Module, names: tuple[str, str]) -> _Found:
    packed, projection = (getattr(module, name) for name in names)
    refusal = _activation_refusal(module) or _part_refusal(module, names)
    if not refusal and packed.weight.shape[0] != 2 * projection.weight.shape[1]:
        refusal = (
            f"{names[0]}.weight has {packed.weight.shape[0]} rows, "
            f"not twice the {projection.weight.shape[1]} inputs of {names[1]}"
        )

    def expected(x: Tensor) -> Tensor:
        return eager.bilinear_mlp(x, packed.weight, projection.weight, packed.bias, projection.bias)

    if not refusal and type(module).forward is not reference.Model.forward:
        refusal = _difference(module, packed.weight, expected)
    return _Found(FusedPair, names, refusal)


def _recognise_gated(module: nn.Module, names: tuple[str, str, str]) -> _Found:
    gate, up, down = (getattr(module, name) for name in names)
    refusal = _activation_refusal(module) or _part_refusal(module, names)
    if not refusal and gate.weight.shape != up.weight.shape:
        refusal = f"{names[0]} and {names[1]} differ in shape"
    if not refusal and (gate.bias is None) != (up.bias is None):
        refusal = f"only one of {names[0]} and {names[1]} has a bias"

    def expected(x: Tensor) -> Tensor:
        product: Tensor = down(gate(x) * up(x))
        return product

    return _Found(FusedGatedMLP, names, refusal or _difference(module, gate.weight, expected))


def _activation_refusal(module: nn.Module) -> str:
    for name in ACTIVATIONS:
        activation = getattr(module, name, None)
        if not callable(activation):
            continue
        probe = torch.linspace(-3, 3, 7)
        with torch.no_grad():
            out = activation(probe)
        if not (isinstance(out, Tensor) and torch.equal(out, probe)):
            kind = getattr(activation, "__name__", type(activation).__name__)
            return f"its activation {name} is {kind}, not the identity"
    return ""


def _part_refusal(module: nn.Module, names: tuple[str, ...]) -> str:
    for name in names:
        if type(getattr(module, name)).forward not in _PLAIN_FORWARDS:
            return f"{name} is a {type(getattr(module, name)).__name__}, with a forward of its own"
    return ""


_PLAIN_FORWARDS = (nn.Linear.forward, reference.Bilinear.forward, Bilinear.forward)


def _difference(module: nn.Module, weight: Tensor, expected: Callable[[Tensor], Tensor]) -> str:
    """Why a module's own forward is not the formula, on random rows, training and not; or ''."""
    if weight.is_meta or type(weight) is not nn.Parameter:
        return "its forward cannot be checked: its weights are not materialised"
    tolerance = _PROBE_TOLERANCE.get(weight.dtype, _HALF_TOLERANCE)
    was_training = [(part, part.training) for part in module.modules()]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_PROBE_ROWS, weight.shape[1], generator=generator).to(weight)
    devices = [weight.device] if weight.is_cuda else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            want = expected(x)
            for training in (False, True):
                module.train(training)
                got = type(module).forward(module, x)
                if not isinstance(got, Tensor) or got.shape != want.shape:
                    return "its forward returns something else than the product's projection"
                if (got - want).abs().max() > tolerance * want.abs().max():
                    return "its forward computes something else"
    except (TypeError, RuntimeError, ValueError, AttributeError) as error:
        return f"its forward cannot be checked: {type(error).__name__}: {error}"
    finally:
        for part, training in was_training:
            part.training = training
    return ""


def _exchange(module: nn.Module, found: _Found, recompute: bool) -> None:
    module.__dict__["_unfused"] = type(module)
    if found.children:
        module.__dict__["_parts"] = found.children
    module.__dict__["recompute"] = recompute
    module.__class__ = found.fused
