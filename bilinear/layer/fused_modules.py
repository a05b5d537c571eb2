"""The modules that `fuse` puts in place, and the guard that each of their forwards begins with.

A fused module's class is made from two: one of the three below, and the class the module had. So it
stays an instance of its old class, with that class's methods. Nothing is kept in the instance but
what was there: Parameters, children, hooks and `state_dict` are the very same objects.

The fused formula runs only while every part is what it was when `fuse` proved the formula: a plain
linear of torch's, with torch's own forward, no hook, no parametrization, and plain tensors for its
weights. Otherwise the old class's own forward runs, which calls the parts. So an adapter, a hook or
a quantised weight that is put in later takes effect, and `explain` says which part was changed.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from bilinear.layer.activation import LOOKED_UP, NONE, Activation, hold
from bilinear.layer.functional import bilinear, bilinear_mlp
from bilinear.layer.two_weights import gated_mlp
from bilinear.reading.interactions import interaction_matrices

PLAIN = (Tensor, nn.Parameter)
# The hooks on all modules: dictionaries that torch fills and never exchanges.
_FORWARD = torch_module._global_forward_hooks
_PRE = torch_module._global_forward_pre_hooks
_BACKWARD = torch_module._global_backward_hooks
_PRE_BACK = torch_module._global_backward_pre_hooks
_LINEAR = F.linear


@dataclass(frozen=True)
class Part:
    """A linear as it was at `fuse`: name, class, that class's forward, whether it has a bias."""

    name: str
    kind: type[nn.Module]
    forward: Any
    has_bias: bool


@dataclass(frozen=True)
class Proof:
    """What `fuse` found true of a module: the guard checks that it still is.

    `parts` are its linears in the formula's order, none for a layer that is one itself.
    `argument` is the name of forward's input, `old` the class the module had, and `forwards` those
    that were read: of that class and of its bases.
    """

    old: type[nn.Module]
    forwards: tuple[tuple[type[nn.Module], Any], ...]
    argument: str
    parts: tuple[Part, ...] = ()
    activation: Activation = NONE

    def broken_by(self, module: nn.Module) -> str:
        """Why the fused formula must not run now; empty if it may. Calls ask `_guard` instead."""
        for kind, forward in self.forwards:
            if kind.forward is not forward:
                return f"the forward of {kind.__name__} was exchanged"
        for owner, name, function in self.looked_up:
            if getattr(owner, name) is not function:
                return f"{owner.__name__}.{name} was exchanged"
        if not hold(module, self.activation.functions):
            return "a function that it holds was exchanged"
        if not self.parts:
            return weights_are_changed(module)
        known = {part.name for part in self.parts} | {self.activation.name}
        names = [str(name) for name in module._modules if name not in known]
        extra = [*names, *module._parameters, *module._buffers]
        if extra:
            return f"{extra[0]} was added to it"
        if self.activation.name and not _holds_activation(module, self.activation):
            return f"its activation {self.activation.name} was exchanged"
        for part in self.parts:
            why = part_is_changed(module._modules.get(part.name), part)
            if why:
                return f"{part.name} {why}"
        return "a hook is set on all modules" if torch_module._has_any_global_hook() else ""

    @property
    def looked_up(self) -> tuple[tuple[Any, str, Any], ...]:
        """What the forwards find in torch when they are called: (where, its name, what it was)."""
        return (F, "linear", _LINEAR), *LOOKED_UP[self.activation.gate]


def _guard(proof: Proof) -> Callable[[nn.Module], bool]:
    """`not proof.broken_by(module)` as a function in the fewest steps: it runs at every call."""
    if not proof.parts:
        return lambda module: not proof.broken_by(module)
    forwards = proof.forwards
    parts = [(part.name, part.kind, part.forward, part.has_bias) for part in proof.parts]
    activation, looked_up = proof.activation, proof.looked_up
    expected = len(parts) + bool(activation.name)

    def holds(module: nn.Module) -> bool:
        state = module.__dict__
        children = state["_modules"]
        if (
            len(children) != expected
            or state["_parameters"]
            or state["_buffers"]
            or _FORWARD
            or _PRE
            or _BACKWARD
            or _PRE_BACK
        ):
            return False
        for place, name, function in looked_up:
            if getattr(place, name) is not function:
                return False
        for owner, forward in forwards:
            if owner.forward is not forward:
                return False
        if activation.name and not _holds_activation(module, activation):
            return False
        if activation.functions and not hold(module, activation.functions):
            return False
        for child, owner, forward, has_bias in parts:
            part = children.get(child)
            if type(part) is not owner or _is_called_otherwise(part, forward):
                return False
            tensors = part.__dict__["_parameters"]
            bias = tensors.get("bias")
            if type(tensors.get("weight")) not in PLAIN or (bias is not None) is not has_bias:
                return False
            if has_bias and type(bias) not in PLAIN:
                return False
        return True

    return holds


def _is_called_otherwise(part: nn.Module, forward: Any) -> bool:
    """Whether calling a part does more than its class's `forward`."""
    state = part.__dict__
    return (
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        # Asked of the attribute, not of `__dict__`: a compiled graph then guards it.
        or getattr(part.forward, "__func__", None) is not forward
    )


def _holds_activation(module: nn.Module, was: Activation) -> bool:
    found = module.__dict__["_modules"].get(was.name)
    if type(found) is not was.kind or _is_called_otherwise(found, was.forward):
        return False
    return not was.attributes or hold(found, was.attributes)


def part_is_changed(part: Any, was: Part) -> str:
    """How a child differs from the linear it was; empty if it does not."""
    if type(part) is not was.kind:
        return f"is a {type(part).__name__} ({type(part).__module__}), not a {was.kind.__name__}"
    if "forward" in part.__dict__:
        return "has a forward set on the instance"
    if was.kind.forward is not was.forward:
        return f"has another forward: that of {was.kind.__name__} was exchanged"
    if _is_called_otherwise(part, was.forward):
        return "has a hook"
    if (part._parameters.get("bias") is not None) is not was.has_bias:
        return "got a bias" if not was.has_bias else "lost its bias"
    return weights_are_changed(part)


def weights_are_changed(part: nn.Module) -> str:
    """How the weight or bias of a linear is no plain tensor; empty if both are."""
    for name in ("weight", "bias"):
        value = part._parameters.get(name)
        if value is None and (name == "weight" or getattr(part, name, None) is not None):
            return f"has a {name} that is made from others (a parametrization, or weight norm)"
        if value is not None and type(value) not in PLAIN:
            return f"has a {name} of type {type(value).__name__}"
    return ""


class Fused(nn.Module):
    """What the three have in common. `proof` and `recompute` belong to the class."""

    proof: Proof
    recompute: bool

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle and copy by the old class: the class made here has no name of its own."""
        return _unpickled, (self.kind(), self.proof, self.recompute), self.__getstate__()

    @classmethod
    def kind(cls) -> type["Fused"]:
        """Which of the three this is."""
        return next(base for base in cls.__mro__ if base in (FusedBilinear, FusedPair, FusedMLP))

    def _linears(self) -> list[Any]:
        return [self._modules[part.name] for part in self.proof.parts]

    def _run(self, x: Tensor) -> Tensor:
        """The fused formula, (…, d_in) → (…, d_out)."""
        raise NotImplementedError


class FusedBilinear(Fused):
    """A linear whose output's halves are multiplied: h = L ∘ R, run by `bilinear`."""

    def _run(self, x: Tensor) -> Tensor:
        layer: Any = self
        gate = self.proof.activation.gate
        return bilinear(x, layer.weight, layer.bias, recompute=self.recompute, gate=gate)


class FusedPair(Fused):
    """A packed linear and a projection, run as one op. The parts are (packed, projection)."""

    def _run(self, x: Tensor) -> Tensor:
        packed, projection = self._linears()
        return bilinear_mlp(
            x,
            packed.weight,
            projection.weight,
            packed.bias,
            projection.bias,
            recompute=self.recompute,
            gate=self.proof.activation.gate,
        )


class FusedMLP(Fused):
    """Left, right and down linears, run as one op. The parts are (left, right, down)."""

    def _run(self, x: Tensor) -> Tensor:
        left, right, down = self._linears()
        # Both are read, for a compiled graph guards what it reads.
        biases = left.bias, right.bias
        return gated_mlp(
            x,
            (left.weight, right.weight),
            None if biases[0] is None else biases,
            down.weight,
            down.bias,
            recompute=self.recompute,
            gate=self.proof.activation.gate,
        )


def _halves(module: Fused) -> tuple[Tensor, Tensor]:
    linears = module._linears() or [module]
    if isinstance(module, FusedMLP):
        return linears[0].weight, linears[1].weight
    left, right = linears[0].weight.chunk(2, dim=0)
    return left, right


def w_l_of(module: Fused) -> Tensor:
    """Left weights of a fused module, (d, d_in): a view."""
    return _halves(module)[0]


def w_r_of(module: Fused) -> Tensor:
    """Right weights of a fused module, (d, d_in): a view."""
    return _halves(module)[1]


def w_p_of(module: Fused) -> Tensor:
    """Projection weights of a fused pair or MLP, (d_out, d)."""
    weight: Tensor = module._linears()[-1].weight
    return weight


def fused_class(kind: type[Fused], proof: Proof, recompute: bool) -> type[Fused]:
    """The class that a proven module gets: `kind` and its old class in one. Equal ones are one."""
    made = _CLASSES.get((kind, proof, recompute))
    if made is None:
        made = _CLASSES[kind, proof, recompute] = _make_class(kind, proof, recompute)
    return made


_CLASSES: dict[tuple[type, Proof, bool], type[Fused]] = {}


def is_as_made(module: Fused) -> bool:
    """Whether a module's class is one that `fuse` made, and none derived from one since."""
    return type(module) in _CLASSES.values()


def _make_class(kind: type[Fused], proof: Proof, recompute: bool) -> type[Fused]:
    old: Any = proof.old
    holds = _guard(proof)

    @functools.wraps(old.forward)
    def forward(self: Fused, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs:
            x = args[0]
        elif not args and len(kwargs) == 1 and proof.argument in kwargs:
            x = kwargs[proof.argument]
        else:  # whatever else the old forward takes, or refuses
            return old.forward(self, *args, **kwargs)
        return self._run(x) if holds(self) else old.forward(self, x)

    body: dict[str, Any] = {"forward": forward, "proof": proof, "recompute": recompute}
    body |= {name: read for name, read in _readers(proof).items() if not hasattr(old, name)}
    body["__module__"] = __name__
    return type(f"{kind.__name__}[{old.__name__}]", (kind, old), body)


def _readers(proof: Proof) -> dict[str, Any]:
    """What `BilinearMLP` has for reading, but for names of the module's own children."""
    gate, taken = proof.activation.gate, {proof.activation.name, *(p.name for p in proof.parts)}
    readers: dict[str, Any] = {"w_l": property(w_l_of), "w_r": property(w_r_of), "gate": gate}
    # What is read must be able to tell that it is no quadratic form.
    if proof.parts and (gate == "identity" or not (hasattr(proof.old, "gate") or "gate" in taken)):
        readers |= {"w_p": property(w_p_of), "interactions": interaction_matrices}
    return {name: read for name, read in readers.items() if name not in taken}


def _unpickled(kind: type[Fused], proof: Proof, recompute: bool) -> Fused:
    made = fused_class(kind, proof, recompute)
    return made.__new__(made)
