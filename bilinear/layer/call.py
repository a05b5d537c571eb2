"""One call of the layer, by all that decides how it runs; and what an implementation must have.

    out = h W_pᵀ + b_p, or h alone where w_p is None;    h = g(L) ∘ R,    [L, R] = x Wᵀ + bias

Below the public functions arguments come in one order, (x, weight, bias, w_p, b_p), and so do their
gradients. [L, R] (m, 2d), before the gate and the product, is `preact`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from bilinear.kernels.dispatch import Detail

# (x, weight, bias, w_p, b_p): the arguments of a call; without a projection w_p is None. And
# (x, weight, bias, w_p, preact): what backward has of them; preact is None if it was not saved.
Arguments = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
Saved = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
# Gradients of (x, weight, bias, w_p, b_p); None where not asked for.
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
# Made ready for tensors of one signature (see `kernels/places`): (x, weight, bias, w_p, b_p) →
# out, and preact or None; (dout, x, weight, bias, w_p, preact) → gradients.
Forward = Callable[[*Arguments], tuple[Tensor, Tensor | None]]
Backward = Callable[[Tensor, *Saved], Gradients]

# The context of a call. PLAIN: plain tensors, which a Function takes as they are. TRACED: a
# compiler, FakeTensor or a dispatch mode records operators, so the registered ones are called.
# TRANSFORMED: torch.func, forward mode or a tensor subclass, for torch's own operations alone.
PLAIN, TRACED, TRANSFORMED = "plain", "traced", "transformed"


class Call(NamedTuple):
    """Sizes are those of x (m, d_in), weight (2d, d_in), w_p (d_out, d); d_out is None without w_p.

    `precision` ("ieee" or "tf32") is how float32 products are formed on devices that have both.
    With `recompute` nothing but x and the weights may be saved for backward. `gate` is g's name.
    """

    m: int
    d_in: int
    d: int
    d_out: int | None
    dtype: torch.dtype
    device: torch.device
    precision: str = "ieee"
    recompute: bool = False
    gate: str = "identity"
    context: str = PLAIN


class Implementation(Protocol):
    """What `select` chooses among: a module with these names. Tensors in, tensors out.

    Each x is (m, d_in), of any strides; gradients may have any strides, zero ones of `expand` too.
    What is returned is contiguous and new. No argument is written to.
    """

    NAME: str

    def refusal(self, call: Call) -> str:
        """Why this call can't, or shouldn't, run here; empty if it may. Asked at every call."""

    def saves_preact(self, call: Call) -> bool:
        """Whether forward gives preact for backward. Must not depend on call.m.

        A compiled graph for any number of rows asks it once.
        """

    def ready_forward(self, call: Call, *given: *Arguments, save_preact: bool) -> Forward:
        """Gives out (m, d_out), or h (m, d) where w_p is None; and preact (m, 2d) if to be saved.

        For tensors of the signature of `given`, whose values are not looked at.
        """

    def ready_backward(
        self, call: Call, dout: Tensor, *saved: *Saved, needs: Sequence[bool]
    ) -> Backward:
        """Gives the gradients that `needs` names true, in their order; preact None is formed again.

        For tensors of the signature of `dout` and `saved`.
        """

    def detail(self, call: Call, direction: str) -> Detail:
        """What `explain` says of "forward" or "backward" of a call that isn't refused."""
