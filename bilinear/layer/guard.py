"""Checks at every call that what `fuse` proved of a module still holds.

The fused formula runs only while every part is what it was when `fuse` proved the formula: a plain
linear of torch's, with torch's own forward, no hook, no parametrization, and plain tensors for its
weights. `Proof.broken_by` says which of this no longer holds; `guard` makes a function of the same
checks, which takes about a microsecond and returns the weights that it has read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from bilinear.layer.activation import LOOKED_UP, NONE, Activation, Attributes, hold

PLAIN = (Tensor, nn.Parameter)
# Weight, then bias or None, of each part in order.
Weights = tuple[Any, ...]
# The hooks on all modules: torch fills these dictionaries and never replaces them.
_GLOBAL_HOOKS = (
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_LINEAR = F.linear
# torch.fx replaces it while it traces, to record the calls of children.
_CALL = nn.Module.__call__


@dataclass(frozen=True)
class Part:
    """A linear as it was at `fuse`: name, class, that class's forward, whether it has a bias."""

    name: str
    kind: type[nn.Module]
    forward: Any
    has_bias: bool


@dataclass(frozen=True)
class Proof:
    """What `fuse` proved of a module, for the guard to check.

    `parts` are its linears in the formula's order, none for a layer that is one itself.
    `argument` is the name of forward's input, `old` the class the module had, and `forwards` those
    that were read: what `forward` meant for that class and for each of its bases.
    """

    old: type[nn.Module]
    forwards: tuple[tuple[type[nn.Module], Any], ...]
    argument: str
    parts: tuple[Part, ...] = ()
    activation: Activation = NONE

    def broken_by(self, module: nn.Module) -> str:
        """Why the fused formula must not run now; empty if it may.

        Calls ask `guard` instead, but while they are compiled: what is read here becomes guards.
        """
        for kind, forward in self.forwards:
            if kind.forward is not forward:
                return f"the forward of {kind.__name__} was exchanged"
        for owner, name, function in self.looked_up:
            if getattr(owner, name) is not function:
                return f"{owner.__name__}.{name} was exchanged"
        if not hold(module, self.activation.functions):
            return "a function that it holds was exchanged"
        if nn.Module.__call__ is not _CALL:
            return "what a call of a module does was exchanged (torch.fx does so)"
        if not self.parts:
            return weights_are_changed(module)
        known = {part.name for part in self.parts} | {self.activation.name}
        names = [str(name) for name in module._modules if name not in known]
        extra = [*names, *module._parameters, *module._buffers]
        if extra:
            return f"{extra[0]} was added to it"
        hidden = [name for name in known if name in module.__dict__]
        if hidden:
            return f"{hidden[0]} is hidden by an attribute of that name"
        if self.activation.name and not _holds_activation(module, self.activation):
            return f"its activation {self.activation.name} was exchanged"
        for part in self.parts:
            why = part_is_changed(module._modules.get(part.name), part)
            if why:
                return f"{part.name} {why}"
        return "a hook is set on all modules" if torch_module._has_any_global_hook() else ""

    @property
    def looked_up(self) -> tuple[tuple[Any, str, Any], ...]:
        """Torch's functions that the forwards look up when called: (owner, name, function)."""
        return (F, "linear", _LINEAR), *LOOKED_UP[self.activation.gate]

    def weights(self, module: nn.Module) -> Weights:
        """(weight, bias or None) of each part of an unchanged module."""
        linears: list[Any] = [module._modules[part.name] for part in self.parts] or [module]
        return tuple(tensor for linear in linears for tensor in (linear.weight, linear.bias))


def _is_called_otherwise(part: nn.Module, forward: Any) -> bool:
    """Whether calling a part does more than its class's `forward`."""
    state = part.__dict__
    return (
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        # Read as an attribute, not from `__dict__`: a compiled graph then guards it.
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
    """Why the weight or bias of a linear is not a plain tensor; empty if both are."""
    for name in ("weight", "bias"):
        value = part._parameters.get(name)
        if value is None and (name == "weight" or getattr(part, name, None) is not None):
            return f"has a {name} that is made from others (a parametrization, or weight norm)"
        if value is not None and type(value) not in PLAIN:
            return f"has a {name} of type {type(value).__name__}"
        if value is not None and name in part.__dict__:
            return f"has a {name} hidden by an attribute of that name"
    return ""


def guard(proof: Proof) -> Callable[[nn.Module], Weights | None]:
    """`proof.weights` of a module for which `proof.broken_by` is empty; None for any other.

    Written out as code for each proof: the same as a loop over the parts takes half as long again,
    and this runs at every call. It must not be traced: a compiler asks `broken_by`.
    """
    return _written(proof).function()


def _written(proof: Proof) -> "_Source":
    source = _Source()
    source.same_forwards(proof)
    for owner, name, function in proof.looked_up:
        source.unless(f"{source.name(vars(owner))}[{name!r}] is {source.name(function)}")
    source.unless(f"{source.name(nn.Module)}.__call__ is {source.name(_CALL)}")
    source.line("state = module.__dict__")
    if proof.parts:
        _write_children(source, proof)
    else:
        source.weights("module", "state", None)
    source.attributes("state", proof.activation.functions)
    return source


def _write_children(source: "_Source", proof: Proof) -> None:
    activation = proof.activation
    source.line("children = state['_modules']")
    expected = len({part.name for part in proof.parts}) + bool(activation.name)
    source.unless(f"len(children) == {expected}")
    source.unless("not (state['_parameters'] or state['_buffers'])")
    source.unless("not (" + " or ".join(source.name(hooks) for hooks in _GLOBAL_HOOKS) + ")")
    if activation.name:
        source.child(activation.name, activation.kind)
        source.attributes("own", activation.attributes)
    for part in proof.parts:
        source.child(part.name, part.kind)
        source.weights("part", "own", part.has_bias)


class _Source:
    """The guard's source as it is written: its lines, and the objects that they name."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.objects: dict[str, Any] = {"Parameter": nn.Parameter, "Tensor": Tensor}
        self.found: list[str] = []

    def name(self, value: Any) -> str:
        """A name for an object."""
        for known, other in self.objects.items():
            if other is value:
                return known
        made = f"object_{len(self.objects)}"
        self.objects[made] = value
        return made

    def line(self, text: str) -> None:
        self.lines.append(text)

    def unless(self, condition: str) -> None:
        """Return None unless the condition is true."""
        self.line(f"if not ({condition}): return None")

    def same_forwards(self, proof: Proof) -> None:
        """Each class that is called has the forward it had."""
        forwards = dict(proof.forwards) | {part.kind: part.forward for part in proof.parts}
        if proof.activation.kind is not None:
            forwards[proof.activation.kind] = proof.activation.forward
        for kind, forward in forwards.items():
            self.unless(f"{self.name(kind)}.forward is {self.name(forward)}")

    def child(self, name: str, kind: Any) -> None:
        """The child has its class, and calling it runs that class's forward and no hook."""
        self.line(f"part = children[{name!r}]")
        self.unless(f"type(part) is {self.name(kind)} and {name!r} not in state")
        self.line("own = part.__dict__")
        hooks = " or ".join(f"own[{hooks!r}]" for hooks in _HOOKS)
        self.unless(f"not ({hooks} or 'forward' in own)")

    def weights(self, part: str, own: str, has_bias: bool | None) -> None:
        """Weight and bias are plain tensors; with `has_bias` None the bias may be None."""
        weight, bias = f"weight_{len(self.found)}", f"bias_{len(self.found)}"
        self.line(f"held = {own}['_parameters']")
        self.line(f"{weight} = held['weight']")
        self.line(f"{bias} = held['bias']")
        self.unless(f"type({weight}) is Parameter or type({weight}) is Tensor")
        plain = f"type({bias}) is Parameter or type({bias}) is Tensor"
        absent = f"{bias} is None"
        self.unless({True: plain, False: absent, None: f"{absent} or {plain}"}[has_bias])
        self.unless(f"not ('weight' in {own} or 'bias' in {own})")
        self.found += [weight, bias]

    def attributes(self, own: str, attributes: Attributes) -> None:
        """Attributes hold what they held; see `activation.hold`."""
        for name, was in attributes:
            self.line(f"now = {own}.get({name!r})")
            if isinstance(was, tuple):  # a partial, by value
                function, args, keywords = was
                self.unless(f"type(now) is {self.name(partial)}")
                self.unless(f"now.func is {self.name(function)} and now.args == {args!r}")
                self.unless(f"now.keywords == {self.name(dict(keywords))}")
            elif callable(was):
                self.unless(f"now is {self.name(was)}")
            else:
                same = f"type(now) is {self.name(type(was))} and now == {self.name(was)}"
                self.unless(f"now is {self.name(was)} or {same}")

    def text(self) -> str:
        """The function's source. A missing key (a deleted child) is a change too."""
        weights = f"return {', '.join(self.found)}"
        body = "\n".join(f"        {line}" for line in [*self.lines, weights])
        return f"def holds(module):\n    try:\n{body}\n    except KeyError:\n        return None\n"

    def function(self) -> Callable[[nn.Module], Weights | None]:
        """The function."""
        exec(compile(self.text(), f"<{__name__}>", "exec"), self.objects)
        holds: Callable[[nn.Module], Weights | None] = self.objects["holds"]
        return holds
