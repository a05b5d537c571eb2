"""The modules that `fuse` puts in place.

A fused module's class is made from two: one of the three below, and the class the module had. So it
stays an instance of its old class, with that class's methods. Nothing is kept in the instance but
what was there: Parameters, children, hooks and `state_dict` are the very same objects.

The fused formula runs only while the guard of the module's proof holds (`guard.py`). Otherwise the
old class's own forward runs, which calls the parts. So an adapter, a hook or a quantised weight
that is put in later takes effect, and `explain` says which part was changed.
"""

import functools
from typing import Any

from torch import Tensor, nn

from bilinear.layer.context import is_undisturbed
from bilinear.layer.functional import bilinear, bilinear_mlp
from bilinear.layer.guard import Proof, Weights, guard
from bilinear.layer.two_weights import gated_mlp
from bilinear.reading.interactions import interaction_matrices


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

    def _run(self, x: Tensor, weights: Weights, undisturbed: bool) -> Tensor:
        """The fused formula, (…, d_in) → (…, d_out), of the weights that the guard looked at.

        `undisturbed` is `context.is_undisturbed()`, which has been asked.
        """
        raise NotImplementedError


class FusedBilinear(Fused):
    """A linear whose output's halves are multiplied: h = L ∘ R, run by `bilinear`."""

    def _run(self, x: Tensor, weights: Weights, undisturbed: bool) -> Tensor:
        weight, bias = weights
        gate = self.proof.activation.gate
        return bilinear(x, weight, bias, recompute=self.recompute, gate=gate)


class FusedPair(Fused):
    """A packed linear and a projection, run as one op. The parts are (packed, projection)."""

    def _run(self, x: Tensor, weights: Weights, undisturbed: bool) -> Tensor:
        weight, bias, w_p, b_p = weights
        gate = self.proof.activation.gate
        return bilinear_mlp(x, weight, w_p, bias, b_p, recompute=self.recompute, gate=gate)


class FusedMLP(Fused):
    """Left, right and down linears, run as one op. The parts are (left, right, down)."""

    def _run(self, x: Tensor, weights: Weights, undisturbed: bool) -> Tensor:
        w_l, b_l, w_r, b_r, w_p, b_p = weights
        how = self.recompute, self.proof.activation.gate, undisturbed
        return gated_mlp(x, w_l, b_l, w_r, b_r, w_p, b_p, *how)


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
    held = guard(proof)

    def watched(self: Fused) -> Weights | None:
        """What `held` gives, by reads that a compiler follows and makes guards of."""
        return None if proof.broken_by(self) else proof.weights(self)

    @functools.wraps(old.forward)
    def forward(self: Fused, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs:
            x = args[0]
        elif not args and len(kwargs) == 1 and proof.argument in kwargs:
            x = kwargs[proof.argument]
        else:  # the old forward takes other arguments, or raises
            return old.forward(self, *args, **kwargs)
        undisturbed = is_undisturbed()
        weights = held(self) if undisturbed else watched(self)
        if weights is None:
            return old.forward(self, x)
        return self._run(x, weights, undisturbed)

    body: dict[str, Any] = {"forward": forward, "proof": proof, "recompute": recompute}
    body |= {name: read for name, read in _readers(proof).items() if not hasattr(old, name)}
    body["__module__"] = __name__
    return type(f"{kind.__name__}[{old.__name__}]", (kind, old), body)


def _readers(proof: Proof) -> dict[str, Any]:
    """What `BilinearMLP` has for reading, but for names of the module's own children."""
    gate, taken = proof.activation.gate, {proof.activation.name, *(p.name for p in proof.parts)}
    readers: dict[str, Any] = {"w_l": property(w_l_of), "w_r": property(w_r_of), "gate": gate}
    # Reading needs `gate` to refuse a module that is no quadratic form.
    if proof.parts and (gate == "identity" or not (hasattr(proof.old, "gate") or "gate" in taken)):
        readers |= {"w_p": property(w_p_of), "interactions": interaction_matrices}
    return {name: read for name, read in readers.items() if name not in taken}


def _unpickled(kind: type[Fused], proof: Proof, recompute: bool) -> Fused:
    made = fused_class(kind, proof, recompute)
    return made.__new__(made)
