"""The g of a gated MLP as `fuse` found it, and whether it still is.

g is a child's forward, or a function that the module's forward calls. Either may depend on
attributes (`nn.GELU.approximate`; a function kept as `self.act`): these are compared by value.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bilinear.layer.gates import MODULES, name_in_torch

Attributes = tuple[tuple[str, Any], ...]
# By gate: torch's functions that a forward may look up when it is called.
_RELU = ((F, "relu", F.relu), (torch, "relu", torch.relu))
LOOKED_UP: dict[str, tuple[tuple[Any, str, Any], ...]] = {
    "identity": (),
    "silu": ((F, "silu", F.silu),),
    "gelu": ((F, "gelu", F.gelu),),
    "gelu_tanh": ((F, "gelu", F.gelu),),
    "relu": _RELU,
    "sigmoid": ((F, "sigmoid", F.sigmoid), (torch, "sigmoid", torch.sigmoid)),
    "relu2": (*_RELU, (torch, "square", torch.square)),
}


@dataclass(frozen=True)
class Activation:
    """g: its gate's name, and what must stay for it to be that.

    `name`, `kind`, `forward` and `attributes` are those of the child that computes g; `name` is
    empty where the forward calls a function, or none. `functions` are the module's own attributes
    that hold functions.
    """

    gate: str = "identity"
    name: str = ""
    kind: type[nn.Module] | None = None
    forward: Any = None
    attributes: Attributes = ()
    functions: Attributes = ()


NONE = Activation()


def by_value(held: object) -> Any:
    """What an attribute holds, so that a copy of it is equal."""
    if type(held) is partial:
        return held.func, held.args, tuple(held.keywords.items())
    return held


def hold(module: nn.Module, attributes: Attributes) -> bool:
    """Whether a module's attributes hold what they held."""
    state = module.__dict__
    for name, was in attributes:
        now = by_value(state.get(name))
        if type(now) is not type(was) or now != was:
            return False
    return True


def functions_of(module: nn.Module) -> Attributes:
    """The module's own attributes that hold torch's function of a gate."""
    return tuple((name, by_value(v)) for name, v in module.__dict__.items() if name_in_torch(v))


def is_torchs(module: object) -> bool:
    """Whether an activation is torch's own module of a gate."""
    return type(module) in MODULES or type(module) is nn.GELU


def attributes_of(module: nn.Module) -> Attributes:
    """What the forward of an activation, torch's or one that was read, depends on."""
    if type(module) is nn.GELU:
        return (("approximate", module.approximate),)
    return functions_of(module)
