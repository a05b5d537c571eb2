"""Launchers of the dual matmul: one pass over x feeds the left and the right product.

Tensors in, tensors out. All floating tensors of one call share one dtype and one device; x and
gradients may have any strides (zero strides of `expand` too), weights as well; what is returned is
contiguous. `precision` ("ieee" | "tf32" | "tf32x3") is how float32 products are formed; other
dtypes ignore it (bfloat16 and float16 accumulate in float32, float64 in float64).
"""

from torch import Tensor

from .tiles import Tile


def dual_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    precision: str,
    config: Tile | None = None,
    preact: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """h = (x W_lᵀ + b_l) ∘ (x W_rᵀ + b_r), (M, d); with `preact` also lr = [L, R], (M, 2d).

    x (M, d_in); weight (2d, d_in), left half first; bias (2d,) or None.
    """
    raise NotImplementedError


def dual_backward(
    dh: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    precision: str,
    config: Tile | None = None,
    with_h: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """dlr = [dh ∘ R, dh ∘ L], (M, 2d), with L and R recomputed from x; `with_h` adds h (M, d).

    dh (M, d). With L and R at hand use `pointwise.product_backward` instead. Then
    dx = dlr @ weight, dweight = dlrᵀ @ x, dbias = dlr.sum(0), and dW_p = doutᵀ @ h.
    """
    raise NotImplementedError


def dual_backward_input(
    dh: Tensor, lr: Tensor, weight: Tensor, *, precision: str, config: Tile | None = None
) -> Tensor:
    """dx = (dh ∘ R) W_l + (dh ∘ L) W_r, (M, d_in); dL and dR never reach memory.

    dh (M, d); lr (M, 2d) as `dual_forward(preact=True)` gives it; weight (2d, d_in).
    """
    raise NotImplementedError


def dual_backward_weight(
    dh: Tensor,
    lr: Tensor,
    x: Tensor,
    *,
    precision: str,
    bias: bool,
    config: Tile | None = None,
) -> tuple[Tensor, Tensor | None]:
    """dweight = [(dh ∘ R)ᵀ x; (dh ∘ L)ᵀ x], (2d, d_in), and with `bias` dbias (2d,).

    dL and dR never reach memory. Sums over M in two ordered stages: the same bits every run.
    """
    raise NotImplementedError
