"""Put the fused layer into a model that has the plain one, and take it out again.

A module's class is exchanged, nothing else: Parameters, names, hooks and `state_dict` stay the very
same objects. `recognise` says which modules are proven to compute the layer's formula, and
`fused_modules` how a fused module makes sure at every call that they still do.
"""

from dataclasses import dataclass, field

from torch import nn

from bilinear.layer.fused_modules import Fused, fused_class, is_as_made
from bilinear.layer.recognise import recognise


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


def fuse(model: nn.Module, *, recompute: bool = False, strict: bool = False) -> FuseReport:
    """Replace, in place, the bilinear parts of a model by fused ones that share its Parameters.

    Replaced are layers h = L ∘ R of a packed linear, such layers (or packed gate-and-up linears)
    with a projection, and MLPs of gate, up and down linears, as Llama-family models have; with the
    identity, silu, gelu (both kinds), relu, sigmoid or squared relu as activation. A module is
    replaced only if its forward is proven to be that formula; every other module that looks like
    one is in the report as kept, with the reason. A replaced module stays an instance of its old
    class. Whenever one of its parts is changed later (an adapter, a hook, a quantised weight), its
    old forward runs instead, and `explain` says so. A `TorchFunctionMode` sees the fused call's
    operations, not the linears'.

    `recompute` is that of `bilinear.functional`. Fuse before wrapping in DDP or FSDP, and before or
    after adapters: parts that have one are kept.

    Raises:
        TypeError: `model` is no module.
        ValueError: with `strict`, if a candidate would be kept; nothing is replaced then.

    Examples:
        >>> from bilinear import fuse, reference
        >>> model = reference.Model(reference.ModelConfig(p=5, d_hidden=3))
        >>> print(fuse(model))
        replaced 1, kept 0
          (the model itself): Model -> FusedPair
    """
    _check_model(model)
    report = FuseReport()
    proven: list[tuple[nn.Module, type[Fused]]] = []
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in inside:
            continue
        if isinstance(module, Fused):
            inside.update(module.modules())
            continue
        found = recognise(module)
        if found is None:
            continue
        label = name or "(the model itself)"
        if found.kind is None or found.proof is None:
            report.kept.append((label, found.refusal))
            continue
        try:
            fused = fused_class(found.kind, found.proof, recompute)
        except Exception as error:  # the model's class may refuse to be derived from
            report.kept.append((label, f"its class cannot be derived from: {error}"))
            continue
        inside.update(module.modules())
        proven.append((module, fused))
        report.replaced.append((label, type(module).__name__, found.kind.__name__))
    if strict and report.kept:
        raise ValueError(f"model: expected every candidate to be replaceable, got\n{report}")
    for module, fused in proven:
        module.__class__ = fused
    return report


def unfuse(model: nn.Module) -> FuseReport:
    """Give every module that `fuse` replaced its own class back, in place.

    Kept is a module whose `forward` was set on the instance since, which holds the fused one, and
    one whose class was derived from the fused one since (parametrizations and FSDP2 do so).

    Raises:
        TypeError: `model` is no module.
    """
    _check_model(model)
    report = FuseReport()
    for name, module in model.named_modules():
        if not isinstance(module, Fused):
            continue
        label = name or "(the model itself)"
        if not is_as_made(module):
            report.kept.append((label, f"its class {type(module).__name__} was made after fuse"))
            continue
        if "forward" in module.__dict__:
            report.kept.append((label, "its forward was set on the instance after fuse"))
            continue
        kind, old = module.kind(), module.proof.old
        module.__class__ = old  # type: ignore[assignment]
        report.replaced.append((label, kind.__name__, old.__name__))
    return report


def _check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
