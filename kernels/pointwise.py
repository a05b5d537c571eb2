"""Launchers of the elementwise kernels that stand beside a library matmul over the packed weight."""

from torch import Tensor


def product_forward(lr: Tensor) -> Tensor:
    """h = L ∘ R, (M, d), of lr = [L, R], (M, 2d); any strides."""
    raise NotImplementedError


def product_backward(
    dh: Tensor, lr: Tensor, *, with_h: bool = False
) -> tuple[Tensor, Tensor | None]:
    """dlr = [dh ∘ R, dh ∘ L], (M, 2d), of dh (M, d) and lr (M, 2d); `with_h` adds h (M, d)."""
    raise NotImplementedError
