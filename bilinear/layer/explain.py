"""What a call of the layer would run on, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import nn

from bilinear.layer import triton_kernels
from bilinear.layer.call import PLAIN, TRACED, TRANSFORMED, Call
from bilinear.layer.context import autocast_dtype, context_of
from bilinear.layer.fused_modules import Fused, FusedBilinear, FusedMLP, w_l_of, w_p_of
from bilinear.layer.gates import gate_name
from bilinear.layer.modules import Bilinear, BilinearMLP
from bilinear.layer.select import IMPLEMENTATIONS, precision, select
from bilinear.layer.two_weights import detail, is_compiled, is_few, is_packed


@dataclass(frozen=True)
class Choice:
    """Of one module (empty name for bare shapes) and one op: what it runs on, and why.

    `implementation` is "triton", "native", "matmuls" or "eager"; `kernel` and its tile `config` are
    Triton's.
    """

    name: str
    op: str
    implementation: str
    kernel: str
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
            kernel = f" {choice.kernel}" if choice.kernel else ""
            config = "" if choice.config is None else f" [{choice.config}]"
            how = f"{choice.implementation}{kernel}{config}"
            lines.append(f"{where}{choice.op} -> {how}: {choice.reason}")
        return "\n".join(lines) or "no bilinear layer found; bilinear.fuse(model) puts them in"


def explain(
    what: nn.Module | Sequence[int],
    *,
    rows: int = 4096,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    recompute: bool = False,
    gate: object = "identity",
    compiled: bool = False,
) -> Explanation:
    """Say which implementation every bilinear layer would run on, forward and backward, and why.

    `what` is a module, whose layers are explained for `rows` rows of input in their own dtype and
    on their own device; or sizes (m, d_in, d) of `bilinear`, (m, d_in, d, d_out) of
    `bilinear_mlp`, for which dtype, device, recompute and gate are read too. The call is one made
    where `explain` is asked: under the same autocast and torch.func transforms; with `compiled`,
    inside of torch.compile or torch.export.

    Raises:
        ValueError: `what` is neither a module nor three or four integers, or an unknown gate.
    """
    if isinstance(what, nn.Module):
        calls = _calls(what, rows)
    elif _are_sizes(what):
        m, d_in, d, *last = what
        d_out = last[0] if last else None
        call = Call(m, d_in, d, d_out, dtype, torch.device(device))
        calls = [("", call._replace(recompute=recompute, gate=gate_name(gate)), False)]
    else:
        raise ValueError(
            f"what: expected a module, (m, d_in, d) or (m, d_in, d, d_out), got {what!r}"
        )
    chosen = [
        _choice(name, _here(call, compiled), direction, two_weights)
        for name, call, two_weights in calls
        for direction in ("forward", "backward")
    ]
    return Explanation((*chosen, *(_own_forwards(what) if isinstance(what, nn.Module) else ())))


def _are_sizes(what: object) -> TypeGuard[Sequence[int]]:
    if not isinstance(what, Sequence) or len(what) not in (3, 4):
        return False
    return all(type(n) is int and n >= (i > 0) for i, n in enumerate(what))  # m may be 0


def _here(call: Call, compiled: bool) -> Call:
    """The call as it is where `explain` is asked."""
    dtype = autocast_dtype(call.dtype, call.device)
    context = context_of()
    if (compiled and context == PLAIN) or call.device.type == "meta":
        context = TRACED
    return call._replace(dtype=dtype, precision=precision(dtype, call.device), context=context)


def _own_forwards(model: nn.Module) -> list[Choice]:
    """Modules that `fuse` replaced and whose parts were changed since: their old forward runs."""
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, Fused)]
    broken = [
        (name or type(module).__name__, module.proof.broken_by(module)) for name, module in found
    ]
    return [Choice(name, "forward", "own forward", "", None, why) for name, why in broken if why]


def _choice(name: str, call: Call, direction: str, two_weights: bool) -> Choice:
    op = f"{'bilinear' if call.d_out is None else 'mlp'}_{direction}"
    # Explained as in training: gradients are needed.
    packs = is_packed(call, needs_gradients=True) or is_compiled(call)
    if two_weights and (is_few(call) or not packs):
        return Choice(name, op, *_apart(call), detail(call, needs_gradients=True))
    chosen = select(call)
    refusals = [i.refusal(call) for i in IMPLEMENTATIONS[: IMPLEMENTATIONS.index(chosen)]]
    kernel, tile, reason = chosen.detail(call, direction)
    reason = f"{reason}; {detail(call, needs_gradients=True)}" if two_weights else reason
    return Choice(name, op, chosen.NAME, kernel, tile, "; ".join([*refusals, reason]))


def _apart(call: Call) -> tuple[str, str, None]:
    """(implementation, kernel, tile) of an MLP whose two weights are not packed."""
    if call.context == TRANSFORMED or is_few(call):
        return "eager", "", None
    if call.context == PLAIN and not triton_kernels.refusal(call):
        return "triton", "pointwise", None
    return "matmuls", "", None


def _calls(model: nn.Module, m: int) -> list[tuple[str, Call, bool]]:
    """Name and call of each layer of a model, and whether it keeps W_l and W_r apart."""
    calls = []
    inner: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in inner:
            continue
        call = _call(module, m)
        if call is not None:
            inner.update(id(child) for child in module.modules())
            calls.append((name or type(module).__name__, call, isinstance(module, FusedMLP)))
    return calls


def _call(module: nn.Module, m: int) -> Call | None:
    if isinstance(module, Bilinear):
        weight, w_p, recompute, gate = module.weight, None, module.recompute, module.gate
        d = weight.shape[0] // 2
    elif isinstance(module, BilinearMLP):
        weight, w_p, recompute = module.bi_linear.weight, module.w_p, module.bi_linear.recompute
        d, gate = weight.shape[0] // 2, module.gate
    elif isinstance(module, Fused):
        if module.proof.broken_by(module):
            return None
        weight, recompute = w_l_of(module), module.recompute
        w_p = None if isinstance(module, FusedBilinear) else w_p_of(module)
        d, gate = weight.shape[0], module.proof.activation.gate
    else:
        return None
    d_out = None if w_p is None else w_p.shape[0]
    sizes = m, weight.shape[1], d, d_out
    return Call(*sizes, weight.dtype, weight.device, recompute=recompute, gate=gate)
