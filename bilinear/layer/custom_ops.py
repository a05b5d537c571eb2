"""The layer's forward and backward as opaque operators (`torch.ops.bilinear.*`).

For whatever traces or watches operators: torch.compile, torch.export, FakeTensor, meta tensors.
Plain calls go to an implementation directly, which saves tens of microseconds a call. An operator
may not return None, so each returns a list: out, then preact where it is saved; the gradients
that are needed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bilinear.layer import triton_kernels
from bilinear.layer.call import TRACED, Call, Gradients
from bilinear.layer.select import describe, select

# mypy: disable-error-code="untyped-decorator"

# Whether preact is saved must not depend on M, or a compiled graph would be bound to one M.
_NOMINAL_ROWS = 2**14


@torch.library.custom_op("bilinear::forward", mutates_args=())
def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    w_p: Tensor | None,
    b_p: Tensor | None,
    save_preact: bool,
    gate: str,
) -> list[Tensor]:
    """[out (M, d_out) or h (M, d)], and preact (M, 2d) if it is to be saved."""
    call = describe(x, weight, bias, w_p, b_p, not save_preact, gate, TRACED)
    given = x, weight, bias, w_p, b_p
    out, preact = select(call).ready_forward(call, *given, save_preact=save_preact)(*given)
    return [out] if preact is None else [out, preact]


@forward.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    w_p: Tensor | None,
    b_p: Tensor | None,
    save_preact: bool,
    gate: str,
) -> list[Tensor]:
    m, width = x.shape[0], weight.shape[0] // 2 if w_p is None else w_p.shape[0]
    out = x.new_empty(m, width)
    return [out, x.new_empty(m, weight.shape[0])] if save_preact else [out]


@torch.library.custom_op("bilinear::backward", mutates_args=())
def backward(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    w_p: Tensor | None,
    preact: Tensor | None,
    needs: Sequence[bool],
    gate: str,
) -> list[Tensor]:
    """Gradients of x, weight, bias, w_p and b_p, those that `needs` names true, in this order."""
    call = describe(x, weight, bias, w_p, None, preact is None, gate, TRACED)
    saved = dout, x, weight, bias, w_p, preact
    found = select(call).ready_backward(call, *saved, needs=needs)(*saved)
    return [gradient for gradient in found if gradient is not None]


@backward.register_fake
def _(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    w_p: Tensor | None,
    preact: Tensor | None,
    needs: Sequence[bool],
    gate: str,
) -> list[Tensor]:
    w_p_shape = weight.shape[:0] if w_p is None else w_p.shape
    shapes = (x.shape, weight.shape, weight.shape[:1], w_p_shape, w_p_shape[:1])
    return [x.new_empty(shape) for shape, need in zip(shapes, needs, strict=True) if need]


def spread(found: Sequence[Tensor], needs: Sequence[bool]) -> Gradients:
    """Undo what leaving out unneeded gradients did: None where nothing was asked for."""
    remaining = iter(found)
    dx, dweight, dbias, dw_p, db_p = (next(remaining) if need else None for need in needs)
    return dx, dweight, dbias, dw_p, db_p


def saves_preact(x: Tensor, weight: Tensor, w_p: Tensor | None, recompute: bool, gate: str) -> bool:
    """Whether `forward` is to give preact; asked while a graph is traced."""
    if recompute or not (x.is_cuda or triton_kernels.INTERPRETED):
        return not recompute
    d_out = None if w_p is None else w_p.shape[0]
    return _saves_preact(x.dtype, x.device, weight.shape[1], weight.shape[0] // 2, d_out, gate)


def _saves_preact(
    dtype: torch.dtype, device: torch.device, d_in: int, d: int, d_out: int | None, gate: str
) -> bool:
    call = Call(_NOMINAL_ROWS, d_in, d, d_out, dtype, device, gate=gate, context=TRACED)
    return select(call).saves_preact(call)


# To trace into the kernels' table would break the graph, so the compiler takes the result as a
# constant. `torch.compiler.assume_constant_result` sets this attribute too, but imports the whole
# compiler, which takes longer than a script's first forward.
_saves_preact._dynamo_marked_constant = True  # type: ignore[attr-defined]
