"""The layer as plain differentiable torch operations, which torch's own autograd records.

Every transform of torch sees through it: double backward, forward mode, `torch.func`, tensor
subclasses such as DTensor. The other implementations are checked against it.
"""

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from bilinear.kernels.dispatch import Detail
from bilinear.layer.call import Arguments, Backward, Call, Forward, Gradients, Saved
from bilinear.layer.gates import product, product_backward

NAME = "eager"


def compose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    w_p: Tensor | None = None,
    b_p: Tensor | None = None,
    *,
    gate: str = "identity",
) -> Tensor:
    """h (…, d) for x (…, d_in), or out = h W_pᵀ + b_p (…, d_out) where w_p is given."""
    left, right = F.linear(x, weight, bias).chunk(2, -1)
    h = product(left, right, gate)
    return h if w_p is None else F.linear(h, w_p, b_p)


def refusal(call: Call) -> str:
    """Nothing is refused."""
    return ""


def saves_preact(call: Call) -> bool:
    """What is saved is autograd's to choose."""
    return False


def ready_forward(call: Call, *given: *Arguments, save_preact: bool) -> Forward:
    """See `call.Implementation`."""
    return partial(forward, call, save_preact=save_preact)


def ready_backward(call: Call, dout: Tensor, *saved: *Saved, needs: Sequence[bool]) -> Backward:
    """See `call.Implementation`."""
    return partial(backward, call, needs=needs)


def forward(call: Call, *given: *Arguments, save_preact: bool) -> tuple[Tensor, None]:
    """See `call.Forward`; differentiable itself, for x of any leading shape."""
    return compose(*given, gate=call.gate), None


def backward(call: Call, dout: Tensor, *saved: *Saved, needs: Sequence[bool]) -> Gradients:
    """See `call.Backward`; differentiable itself, which a given preact would not be."""
    x, weight, bias, w_p, _ = saved
    left, right = F.linear(x, weight, bias).chunk(2, -1)
    dh = dout if w_p is None else dout @ w_p
    dpreact = product_backward(dh, left, right, call.gate)
    return (
        dpreact @ weight if needs[0] else None,
        dpreact.t() @ x if needs[1] else None,
        dpreact.sum(0) if needs[2] else None,
        dout.t() @ product(left, right, call.gate) if needs[3] else None,
        dout.sum(0) if needs[4] else None,
    )


def detail(call: Call, direction: str) -> Detail:
    """See `call.Implementation`."""
    return Detail("", None, "torch's operations, which its autograd records")
