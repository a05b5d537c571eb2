"""The plain PyTorch model that everything else is tested and timed against.

Published models of this kind are stored under its parameter names (`bi_linear.weight`,
`projection.weight`); fused modules have the same.
"""

from dataclasses import dataclass

from torch import Tensor, nn


class Bilinear(nn.Linear):
    """h = (x W_lᵀ + b_l) ∘ (x W_rᵀ + b_r), with both halves in one `weight`, left half first.

    `weight` is (2·d_out, d_in); input (…, d_in), output (…, d_out).
    """

    def __init__(self, d_in: int, d_out: int, bias: bool = False) -> None:
        """Make a layer of d_out products over d_in inputs, initialised as `nn.Linear` is."""
        super().__init__(d_in, 2 * d_out, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """(…, d_in) → (…, d_out)."""
        left, right = super().forward(input).chunk(2, dim=-1)
        return left * right

    @property
    def w_l(self) -> Tensor:
        """Left weights, (d_out, d_in): a view of `weight`."""
        return self.weight.chunk(2, dim=0)[0]

    @property
    def w_r(self) -> Tensor:
        """Right weights, (d_out, d_in): a view of `weight`."""
        return self.weight.chunk(2, dim=0)[1]


@dataclass(frozen=True)
class ModelConfig:
    """Modulus p, hidden width d_hidden (the bottleneck dimension), whether layers have biases."""

    p: int
    d_hidden: int
    bias: bool = False


class Model(nn.Module):
    """Modular addition: onehot(a) ⊕ onehot(b), (…, 2p) → logits (…, p)."""

    def __init__(self, config: ModelConfig) -> None:
        """Make the bilinear layer (2p → d_hidden) and the projection (d_hidden → p)."""
        super().__init__()
        self.config = config
        self.bi_linear = Bilinear(2 * config.p, config.d_hidden, bias=config.bias)
        self.projection = nn.Linear(config.d_hidden, config.p, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(…, 2p) → (…, p)."""
        return self.projection(self.bi_linear(x))

    @property
    def w_l(self) -> Tensor:
        """Left weights, (d_hidden, 2p)."""
        return self.bi_linear.w_l

    @property
    def w_r(self) -> Tensor:
        """Right weights, (d_hidden, 2p)."""
        return self.bi_linear.w_r

    @property
    def w_p(self) -> Tensor:
        """Projection weights, (p, d_hidden)."""
        return self.projection.weight
