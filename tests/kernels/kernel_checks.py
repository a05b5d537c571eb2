"""Inputs of odd sizes and layouts, and the error a kernel may make, for the kernel tests."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from bilinear.kernels.tiles import Tile

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# float32 and float64 run everywhere; 16 bits on a device only: the interpreter's bfloat16 dot is
# wrong.
DTYPES = [
    torch.float32,
    torch.float64,
    pytest.param(torch.bfloat16, marks=pytest.mark.gpu),
    pytest.param(torch.float16, marks=pytest.mark.gpu),
]

# (m, d_in, d, d_out)
SIZES = [(1, 1, 1, 1), (3, 17, 65, 5), (63, 64, 17, 65), (65, 129, 3, 63), (129, 3, 63, 1)]
LAYOUTS = ["contiguous", "transposed", "gapped"]
# (size, layout of x and of incoming gradients, with biases): every size, layout and bias, not
# every combination, because the interpreter is slow.
CASES = [(size, LAYOUTS[i % 3], i % 2 == 1) for i, size in enumerate(SIZES)] + [
    ((3, 17, 65, 5), "contiguous", False),
    ((17, 63, 3, 17), "transposed", True),
    ((64, 5, 17, 3), "gapped", True),
]

TILE = Tile(block_m=64, block_d=32, block_n=32, block_k=32, num_warps=4, num_stages=2)
# Of the whole MLP's backward: its one pass fits nothing, so that each gradient has a kernel.
BY_GRADIENT = {
    "mlp_backward": Tile(block_m=0, num_warps=4, num_stages=1),
    "mlp_backward_input": TILE,
    "mlp_backward_weight": TILE,
    "mlp_backward_projection": TILE,
}

# Relative to the tensor's norm, what passes whatever eager's error: half a unit in the last place
# with some room, since a sum of one or two terms may come out of eager exact. The interpreter's
# dot is numpy's, which adds one term after the other where PyTorch's matmul keeps several sums:
# there the floor is that of three such sums of 129 terms chained.
FLOOR = 0.75 if DEVICE == "cuda" else 6.0


@dataclass
class Case:
    """Inputs of one layer in one dtype; `exact` is the same numbers in float64."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    w_p: Tensor
    b_p: Tensor | None
    dh: Tensor
    dout: Tensor

    def to(self, dtype: torch.dtype) -> "Case":
        return Case(**{k: None if v is None else v.to(dtype) for k, v in vars(self).items()})


def draw(
    size: tuple[int, int, int, int], dtype: torch.dtype, *, bias: bool, layout: str = "contiguous"
) -> Case:
    """Fresh inputs; x and the incoming gradients have the layout's strides."""
    m, d_in, d, d_out = size
    scale = d_in**-0.5
    return Case(
        x=_laid_out(m, d_in, dtype, layout),
        weight=_normal(2 * d, d_in, dtype=dtype) * scale,
        bias=_normal(2 * d, dtype=dtype) if bias else None,
        w_p=_normal(d_out, d, dtype=dtype) * d**-0.5,
        b_p=_normal(d_out, dtype=dtype) if bias else None,
        dh=_laid_out(m, d, dtype, layout),
        dout=_laid_out(m, d_out, dtype, layout),
    )


def _normal(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(DEVICE, dtype)


def _laid_out(rows: int, columns: int, dtype: torch.dtype, layout: str) -> Tensor:
    if layout == "transposed":
        return _normal(columns, rows, dtype=dtype).T
    if layout == "gapped":
        return _normal(rows, 3 * columns + 1, dtype=dtype)[:, 1::3]
    return _normal(rows, columns, dtype=dtype)


@dataclass
class Eager:
    """PyTorch's own composition in the inputs' dtype, with every gradient."""

    preact: Tensor
    h: Tensor
    out: Tensor

    def __init__(self, case: Case) -> None:
        self.case = case
        self.preact = torch.nn.functional.linear(case.x, case.weight, case.bias)
        self.left, self.right = self.preact.chunk(2, dim=1)
        self.h = self.left * self.right
        self.out = torch.nn.functional.linear(self.h, case.w_p, case.b_p)

    def dpreact(self, dh: Tensor) -> Tensor:
        return torch.cat([dh * self.right, dh * self.left], dim=1)

    def gradients(self, dh: Tensor) -> dict[str, Tensor]:
        """Gradients of the bilinear layer for dh."""
        dpreact = self.dpreact(dh)
        self.summed = {"bias": dpreact, "b_p": self.case.dout}
        return {
            "x": dpreact @ self.case.weight,
            "weight": dpreact.T @ self.case.x,
            "bias": dpreact.sum(0),
        }

    def mlp_gradients(self) -> dict[str, Tensor]:
        """Gradients of the whole MLP for dout."""
        dout = self.case.dout
        own = {"w_p": dout.T @ self.h, "b_p": dout.sum(0)}
        return self.gradients(dout @ self.case.w_p) | own


def assert_close(
    actual: Tensor, eager: Tensor, exact: Tensor, summed: Tensor | None = None
) -> None:
    """The error against float64 is at most 1.1 times eager's own in that dtype, or the floor.

    In float64, where `exact` is eager itself, the bound is the growth of rounding over a sum.
    `summed` are the terms of a column sum: these may cancel, so their norm sets the scale.
    """
    assert actual.dtype == eager.dtype
    assert actual.shape == exact.shape
    scale = max(exact.norm().item(), 0.0 if summed is None else summed.norm().item())
    error, eager_error = absolute_error(actual, exact), absolute_error(eager, exact)
    floor = 32 if actual.dtype == torch.float64 else FLOOR
    allowed = max(1.1 * eager_error, floor * torch.finfo(actual.dtype).eps * scale)
    assert error <= allowed, f"error {error:.3g}, eager's {eager_error:.3g}, scale {scale:.3g}"


def absolute_error(actual: Tensor, exact: Tensor) -> float:
    """Norm of the error; NaN anywhere gives NaN."""
    return (actual.double() - exact).norm().item()
