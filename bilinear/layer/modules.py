"""The fused layer as modules, with the reference's parameter names.

Forward hooks on the inner modules of an MLP keep firing: while there are any, the inner modules
are called one after the other, so that h can be read or changed.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bilinear.layer.checks import check_sizes
from bilinear.layer.functional import bilinear, bilinear_mlp
from bilinear.layer.gates import gate_name
from bilinear.reading.interactions import interaction_matrices
from bilinear.reading.weights import Outputs


class Bilinear(nn.Linear):
    """h = g(x W_lᵀ + b_l) ∘ (x W_rᵀ + b_r), with both halves in one `weight`, left half first.

    `weight` is (2·d_out, d_in), `bias` (2·d_out,); input (…, d_in), output (…, d_out). Drop-in for
    `bilinear.reference.Bilinear`: same `state_dict`, same initialisation. With `recompute`, only
    the input and the weights are saved for backward, for one more matmul. `gate` is g, the identity
    unless given: a name or torch's function or module, as `bilinear.functional.bilinear` takes it.

    Examples:
        >>> import torch
        >>> from bilinear import Bilinear
        >>> layer = Bilinear(8, 4)
        >>> layer(torch.randn(3, 5, 8)).shape
        torch.Size([3, 5, 4])
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        bias: bool = False,
        recompute: bool = False,
        gate: object = "identity",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Make a layer of d_out products over d_in inputs, initialised as `nn.Linear` is."""
        check_sizes(d_in=d_in, d_out=d_out)
        super().__init__(d_in, 2 * d_out, bias=bias, device=device, dtype=dtype)
        self.recompute = recompute
        self.gate = gate_name(gate)

    @property
    def d_in(self) -> int:
        """Width of the input."""
        return self.in_features

    @property
    def d_out(self) -> int:
        """Width of the output: half the rows of `weight`."""
        return self.out_features // 2

    @property
    def w_l(self) -> Tensor:
        """Left weights, (d_out, d_in): a view of `weight`."""
        return self.weight.chunk(2, dim=0)[0]

    @property
    def w_r(self) -> Tensor:
        """Right weights, (d_out, d_in): a view of `weight`."""
        return self.weight.chunk(2, dim=0)[1]

    def forward(self, input: Tensor) -> Tensor:
        """(…, d_in) → (…, d_out)."""
        return bilinear(input, self.weight, self.bias, recompute=self.recompute, gate=self.gate)

    def extra_repr(self) -> str:
        """What `repr` shows between the brackets."""
        return (
            f"d_in={self.d_in}, d_out={self.d_out}, bias={self.bias is not None}, "
            f"recompute={self.recompute}, gate={self.gate!r}"
        )


class BilinearMLP(nn.Module):
    """out = h W_pᵀ + b_p with h = g(x W_lᵀ + b_l) ∘ (x W_rᵀ + b_r); h is never saved for backward.

    Input (…, d_in), output (…, d_out). The `state_dict` is that of `bilinear.reference.Model`:
    `bi_linear.weight` (2·d_hidden, d_in), `projection.weight` (d_out, d_hidden), and biases.
    `gate` is g, as `Bilinear` takes it.
    """

    def __init__(
        self,
        d_in: int,
        d_hidden: int,
        d_out: int,
        *,
        bias: bool = False,
        recompute: bool = False,
        gate: object = "identity",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Make the bilinear layer (d_in → d_hidden) and the projection (d_hidden → d_out)."""
        check_sizes(d_in=d_in, d_hidden=d_hidden, d_out=d_out)
        super().__init__()
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.bi_linear = Bilinear(
            d_in, d_hidden, bias=bias, recompute=recompute, gate=gate, **where
        )
        self.projection = nn.Linear(d_hidden, d_out, bias=bias, **where)

    @property
    def w_l(self) -> Tensor:
        """Left weights, (d_hidden, d_in)."""
        return self.bi_linear.w_l

    @property
    def w_r(self) -> Tensor:
        """Right weights, (d_hidden, d_in)."""
        return self.bi_linear.w_r

    @property
    def w_p(self) -> Tensor:
        """Projection weights, (d_out, d_hidden)."""
        return self.projection.weight

    @property
    def gate(self) -> str:
        """Name of g."""
        return self.bi_linear.gate

    def interactions(self, output: Outputs = None) -> Tensor:
        """Interaction matrices (n_outputs, d_in, d_in), detached: xᵀ Q_c x is output c.

        `output` None takes all, a number that one alone, (d_in, d_in). Biases are ignored: the
        matrices hold the quadratic term only.

        Raises:
            ValueError: the gate is not the identity, so that no output is a quadratic form of x.
        """
        return interaction_matrices(self, output)

    def reset_parameters(self) -> None:
        """Draw all parameters anew, as at construction."""
        self.bi_linear.reset_parameters()
        self.projection.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """(…, d_in) → (…, d_out)."""
        packed, projection = self.bi_linear, self.projection
        if has_hooks(packed) or has_hooks(projection):
            out: Tensor = projection(packed(x))
            return out
        return bilinear_mlp(
            x, packed.weight, projection.weight, packed.bias, projection.bias,
            recompute=packed.recompute, gate=packed.gate,
        )  # fmt: skip


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module would do more than its forward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
