"""Which modules of a model the fused layer could run, and why the others are kept.

A module is a candidate by its shape (two or three linears around a product), by the names that
gated MLPs have, or because it is called bilinear. A candidate is replaced only if its forward, read
as an expression (`forward_formula`), is the layer's formula, all it consists of is in that formula,
and the two agree on random weights in float64. What cannot be proven is kept, with the reason.
"""

from dataclasses import dataclass

from torch import nn

from bilinear.layer.activation import Activation, attributes_of, functions_of, is_torchs
from bilinear.layer.forward_formula import (
    Expression,
    Unread,
    argument,
    formula,
    forwards,
    is_product,
)
from bilinear.layer.fused_modules import Fused, FusedBilinear, FusedMLP, FusedPair
from bilinear.layer.gates import GATES, name_in_torch
from bilinear.layer.guard import Part, Proof, part_is_changed
from bilinear.layer.modules import Bilinear, BilinearMLP
from bilinear.layer.probe import difference

# Children and parameters under which models keep gated or packed MLPs.
_NAMES = {
    "gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w2", "w3", "bi_linear",
    "dense_h_to_4h", "fc1", "c_fc",
}  # fmt: skip
_OURS = (Bilinear, BilinearMLP)


@dataclass(frozen=True)
class Candidate:
    """A module that could be fused: its proof and new kind, or the reason why it is kept."""

    kind: type[Fused] | None = None
    proof: Proof | None = None
    refusal: str = ""


def recognise(module: nn.Module) -> Candidate | None:
    """Judge one module; None if it does not resemble the layer."""
    if isinstance(module, _OURS) or not _is_candidate(module):
        return None
    try:
        kind, proof = _prove(module)
    except Unread as refusal:
        return Candidate(refusal=str(refusal))
    return Candidate(kind, proof)


def _is_candidate(module: nn.Module) -> bool:
    if "bilinear" in type(module).__name__.lower():
        return True
    if isinstance(module, nn.Linear):
        return type(module).forward is not nn.Linear.forward and _multiplies(module)
    if _NAMES & {*module._modules, *module._parameters}:
        return True
    children = list(module._modules.values())
    if len(children) == 2 and is_product(children[0]):
        return True
    linears = [child for child in children if isinstance(child, nn.Linear)]
    return 2 <= len(linears) <= 3 and len(children) <= 4 and _multiplies(module)


def _multiplies(module: nn.Module) -> bool:
    """Whether a forward can be read, and has a product in it."""
    try:
        return "'mul'" in repr(formula(module))
    except Unread:
        return False


def _prove(module: nn.Module) -> tuple[type[Fused], Proof]:
    """The fused kind of a module and the proof for its guard; raises Unread."""
    _check_instance(module)
    _check_children(module)
    kind, parts, activation = _match(module, formula(module))
    parts = _with_aliases(module, parts)
    _check_nothing_more(module, {*parts, activation.name})
    _check_shapes(module, kind, parts)
    linears = tuple(_as_part(name, getattr(module, name)) for name in parts)
    proof = Proof(type(module), forwards(module), argument(module), linears, activation)
    why = proof.broken_by(module) or difference(module, kind, parts, activation.gate)
    if why:
        raise Unread(why)
    return kind, proof


def _with_aliases(module: nn.Module, parts: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the parts, where tracing gives tied children the first one's name."""
    names = {n: [m for m, c in module._modules.items() if c is getattr(module, n)] for n in parts}
    return tuple(names[n].pop(0) if names[n] else n for n in parts)


def _as_part(name: str, linear: nn.Module) -> Part:
    return Part(name, type(linear), type(linear).forward, linear.bias is not None)


def _check_children(module: nn.Module) -> None:
    for name, child in module._modules.items():
        if isinstance(child, nn.Linear):
            plain = Part(name, nn.Linear, nn.Linear.forward, child.bias is not None)
            why = "" if is_product(child) else part_is_changed(child, plain)
        else:
            why = f"is a {type(child).__name__}" if name in _NAMES else ""
        if why:
            raise Unread(f"{name} {why}{_advice(child)}")


def _check_nothing_more(module: nn.Module, used: set[str]) -> None:
    for name, child in module._modules.items():
        if name not in used:
            raise Unread(f"it also has {name} ({type(child).__name__}), which the formula has not")


def _advice(child: object) -> str:
    home = type(child).__module__.split(".")[0]
    if home == "peft":
        return ", an adapter: merge it first (merge_and_unload), or fuse before it is added"
    if home in ("torchao", "bitsandbytes") or "quant" in type(child).__module__:
        return ", quantised: the fused kernels take float weights alone"
    return ""


def _check_instance(module: nn.Module) -> None:
    if isinstance(module, nn.Bilinear):
        raise Unread("it takes two inputs, and the fused layer multiplies two products of one")
    if "forward" in module.__dict__:
        hook = " (accelerate's hook: remove_hook_from_module takes it off)"
        with_hook = hook if "_hf_hook" in module.__dict__ else ""
        raise Unread(f"its forward is set on the instance{with_hook}")
    for name in ("proof", "recompute"):
        if hasattr(module, name):
            raise Unread(f"it has an attribute {name}, which the fused module needs itself")
    own = ("weight", "bias") if isinstance(module, nn.Linear) else ()
    more = [name for name in (*module._parameters, *module._buffers) if name not in own]
    if more and getattr(module, more[0]).dim() == 3:
        raise Unread(f"{more[0]} is one tensor of many experts, and the fused layer takes linears")
    if more:
        raise Unread(f"it has {more[0]}, a parameter or buffer that no plain linear holds")


def _match(module: nn.Module, found: Expression) -> tuple[type[Fused], tuple[str, ...], Activation]:
    """(kind, names of the linears, activation) of an expression; raises Unread."""
    x = ("x",)
    match found:
        case ("mul", left, right):
            activation, left, right = _without_activation(module, left, right)
            match left, right:
                case ("half", i, ("linear", "", e)), ("half", j, ("linear", "", f)):
                    if i != j and e == f == x:
                        _check_gated_half(i, activation)
                        return FusedBilinear, (), activation
        case ("linear", str(down), ("mul", left, right)):
            activation, left, right = _without_activation(module, left, right)
            match left, right:
                case ("half", i, ("linear", a, e)), ("half", j, ("linear", b, f)):
                    if i != j and a == b and e == f == x:
                        _check_gated_half(i, activation)
                        return FusedPair, (a, down), activation
                case ("linear", str(a), e), ("linear", str(b), f):
                    if e == f == x:
                        return FusedMLP, (a, b, down), activation
    called = _called(found)
    also = f"; it calls {called[0]} ({type(module._modules[called[0]]).__name__})" if called else ""
    raise Unread(f"its forward is not a product of two linears of its input, projected{also}")


def _check_gated_half(half: int, activation: Activation) -> None:
    if half != 0 and activation.gate != "identity":
        raise Unread(
            f"it applies {activation.gate} to the second half, and the fused layer to the first"
        )


def _called(found: Expression) -> list[str]:
    """Names of the children in an expression that are not linears, outermost first."""
    inner = [name for e in found[1:] if isinstance(e, tuple) for name in _called(e)]
    return [found[1], *inner] if found[0] == "child" else inner


def _without_activation(
    module: nn.Module, left: Expression, right: Expression
) -> tuple[Activation, Expression, Expression]:
    """The activation of two factors, what it is taken of, and the other factor; raises Unread."""
    functions = functions_of(module)
    for e, other in ((left, right), (right, left)):
        match e:
            case ("act", gate, function, inner):
                if not gate:
                    raise Unread(f"its activation {function} is none of {', '.join(GATES)}")
                return Activation(gate, functions=functions), inner, other
            case ("child", name, inner):
                child = module.get_submodule(name)
                gate = _gate_of(child)
                if not gate:
                    raise Unread(
                        f"its activation {name} is {type(child).__name__}, "
                        f"which is not known to be one of {', '.join(GATES)}"
                    )
                of_child = type(child), type(child).forward, attributes_of(child)
                return Activation(gate, name, *of_child, functions), inner, other
    return Activation(functions=functions), left, right


def _gate_of(activation: nn.Module) -> str:
    """The gate that a child computes: torch's, or another's whose forward is one; empty if none."""
    if is_torchs(activation):
        return name_in_torch(activation)
    if next(iter(activation.state_dict()), None):
        return ""
    try:
        found = formula(activation)
    except Unread:
        return ""
    match found:
        case ("x",):
            return "identity"
        case ("act", str(gate), _, ("x",)):
            return gate
    return ""


def _check_shapes(module: nn.Module, kind: type[Fused], parts: tuple[str, ...]) -> None:
    if kind is FusedBilinear:
        return
    linears = [getattr(module, name) for name in parts]
    shapes = [tuple(linear.weight.shape) for linear in linears]
    if kind is FusedPair:
        (rows, _), (_, d) = shapes
        if rows != 2 * d:
            raise Unread(
                f"{parts[0]}.weight has {rows} rows, not twice the {d} inputs of {parts[1]}"
            )
        return
    if shapes[0] != shapes[1]:
        raise Unread(f"{parts[0]} and {parts[1]} differ in shape")
    if (linears[0].bias is None) != (linears[1].bias is None):
        raise Unread(f"only one of {parts[0]} and {parts[1]} has a bias")
