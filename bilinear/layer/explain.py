"""What a call of the layer would run on, and why."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from bilinear.layer import select
from bilinear.layer.blocked import block_rows
from bilinear.layer.fused_modules import Fused, FusedBilinear, w_l_of, w_p_of
from bilinear.layer.modules import Bilinear, BilinearMLP
from bilinear.layer.small_calls import SMALL


@dataclass(frozen=True)
class Choice:
    """Of one module (empty name for bare shapes) and one op: its path, its tile if any, and why."""

    name: str
    op: str
    path: str
    config: object
    reason: str


@dataclass(frozen=True)
class Explanation:
    """Choices in the order in which modules are found; `str` gives one line each."""

    choices: tuple[Choice, ...]

    def __str__(self) -> str:
        """One line a choice."""
        lines = []
        for choice in self.choices:
            where = f"{choice.name}: " if choice.name else ""
            config = "" if choice.config is None else f" [{choice.config}]"
            lines.append(f"{where}{choice.op} -> {choice.path}{config}: {choice.reason}")
        return "\n".join(lines) or "no bilinear layer found; bilinear.fuse(model) puts them in"


def explain(
    what: nn.Module | Sequence[int],
    *,
    rows: int = 4096,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    recompute: bool = False,
) -> Explanation:
    """Say which path every bilinear layer would take, forward and backward, and why.

    `what` is a module, whose layers are explained for `rows` rows of input in their own dtype and
    on their own device; or sizes (m, d_in, d) of `bilinear`, (m, d_in, d, d_out) of
    `bilinear_mlp`, for which dtype, device and recompute are read too.

    Raises:
        ValueError: sizes that are neither three nor four.
    """
    if not isinstance(what, nn.Module):
        if len(what) not in (3, 4):
            raise ValueError(
                f"what: expected a module, (m, d_in, d) or (m, d_in, d, d_out), got {what!r}"
            )
        m, d_in, d, *last = what
        d_out = last[0] if last else None
        call = _Call("", m, d_in, d, d_out, dtype, torch.device(device), recompute)
        return Explanation(call.choices())
    calls = _calls(what, rows)
    chosen = [choice for call in calls for choice in call.choices()]
    return Explanation((*chosen, *_own_forwards(what)))


@dataclass(frozen=True)
class _Call:
    name: str
    m: int
    d_in: int
    d: int
    d_out: int | None
    dtype: torch.dtype
    device: torch.device
    recompute: bool

    def choices(self) -> tuple[Choice, ...]:
        family = "bilinear" if self.d_out is None else "mlp"
        return tuple(self._choice(f"{family}_{way}") for way in ("forward", "backward"))

    def _choice(self, op: str) -> Choice:
        missing = select.kernels_missing(self.device)
        if not missing:
            plan = select.plan(op, self.m, self.d_in, self.d, self.d_out, self.dtype, self.device)
            return Choice(self.name, op, plan.path, plan.config, plan.reason)
        if self._is_small():
            why = f"{missing}, and fewer than {SMALL} elements don't pay for a Function"
            return Choice(self.name, op, "composed", None, why)
        return Choice(self.name, op, "rows", None, f"{missing}; {self._blocks()}")

    def _is_small(self) -> bool:
        if self.recompute or self.d_out is not None or self.device.type != "cpu":
            return False
        return self.m * (self.d_in + 2 * self.d) < SMALL

    def _blocks(self) -> str:
        block = block_rows(self.m, self.d_in, self.d, self.dtype)
        if block >= self.m:
            return f"torch's matmuls over all {self.m} rows at once"
        return f"torch's matmuls over {block} rows at a time, whose [L, R] stays in the cache"


def _own_forwards(model: nn.Module) -> list[Choice]:
    """Modules that `fuse` replaced and whose parts were changed since: their old forward runs."""
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, Fused)]
    broken = [
        (name or type(module).__name__, module.proof.broken_by(module)) for name, module in found
    ]
    return [Choice(name, "forward", "own forward", None, why) for name, why in broken if why]


def _calls(model: nn.Module, m: int) -> list[_Call]:
    calls = []
    inner: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in inner:
            continue
        call = _call(name, module, m)
        if call is not None:
            inner.update(id(child) for child in module.modules())
            calls.append(call)
    return calls


def _call(name: str, module: nn.Module, m: int) -> _Call | None:
    name = name or type(module).__name__
    if isinstance(module, Bilinear):
        weight, w_p, recompute = module.weight, None, module.recompute
        d = weight.shape[0] // 2
    elif isinstance(module, BilinearMLP):
        weight, w_p, recompute = module.bi_linear.weight, module.w_p, module.bi_linear.recompute
        d = weight.shape[0] // 2
    elif isinstance(module, Fused):
        if module.proof.broken_by(module):
            return None
        weight, recompute = w_l_of(module), module.recompute
        w_p = None if isinstance(module, FusedBilinear) else w_p_of(module)
        d = weight.shape[0]
    else:
        return None
    d_out = None if w_p is None else w_p.shape[0]
    return _Call(name, m, weight.shape[1], d, d_out, weight.dtype, weight.device, recompute)
