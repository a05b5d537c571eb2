"""Every gate through every kernel that has one, against float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernel_checks import BY_GRADIENT, DEVICE, DTYPES, TILE, Case, absolute_error, draw
from torch import Tensor

from bilinear.kernels import dual, mlp, pointwise
from bilinear.kernels.gates_device import GATES
from bilinear.kernels.tiles import Tile
from bilinear.layer.gates import GATES as LAYERS

# NumPy warns where the interpreter overflows to inf, as a device does without a word.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")
G = {
    "identity": lambda x: x,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "relu2": lambda x: F.relu(x).square(),
}
WHOLE = Tile(block_m=32, block_d=128, block_n=128, block_k=128, num_warps=4, num_stages=1)


class Eager:
    """torch's composition with a gate, and all its gradients, in the inputs' dtype."""

    def __init__(self, case: Case, gate: str) -> None:
        leaves = {
            name: None if value is None else value.detach().clone().requires_grad_()
            for name, value in vars(case).items()
        }
        x, weight, bias, w_p, b_p = (leaves[n] for n in ("x", "weight", "bias", "w_p", "b_p"))
        self.preact = F.linear(x, weight, bias)
        left, right = self.preact.chunk(2, 1)
        self.h = G[gate](left) * right
        self.out = F.linear(self.h, w_p, b_p)
        wanted = [self.preact, x, weight, bias]
        layer = torch.autograd.grad(self.h, wanted, case.dh, retain_graph=True)
        self.layer = dict(zip(("preact", "x", "weight", "bias"), layer, strict=True))
        whole = torch.autograd.grad(self.out, [x, weight, bias, w_p, b_p], case.dout)
        self.mlp = dict(zip(("x", "weight", "bias", "w_p", "b_p"), whole, strict=True))


def check(mine: Tensor, eager: Tensor, exact: Tensor) -> None:
    """At most 1.1 times eager's error, or some roundings of the tensor's norm."""
    assert mine.dtype == eager.dtype
    floor = 64 if mine.dtype == torch.float64 else 8
    allowed = floor * torch.finfo(mine.dtype).eps * exact.norm().item()
    allowed = max(1.1 * absolute_error(eager, exact), allowed)
    assert absolute_error(mine, exact) <= allowed


def test_the_kernels_have_the_layers_gates() -> None:
    assert tuple(LAYERS) == GATES


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(65, 17, 33, 5), (3, 33, 65, 17)])
def test_every_kernel(gate: str, dtype: torch.dtype, size: tuple[int, int, int, int]) -> None:
    case = draw(size, dtype, bias=True, layout="gapped")
    case.weight *= 3  # into saturation, too
    eager, exact = Eager(case, gate), Eager(case.to(torch.float64), gate)
    how: dict[str, Any] = {"precision": "ieee", "gate": gate, "config": TILE}
    preact = eager.preact.detach()
    torch.use_deterministic_algorithms(True)  # memory that nobody wrote reads as NaN
    try:
        h, saved = dual.dual_forward(case.x, case.weight, case.bias, save_preact=True, **how)
        check(h, eager.h, exact.h)
        assert saved is not None
        check(saved, eager.preact, exact.preact)
        dpreact, h = dual.dual_backward(case.dh, case.x, case.weight, case.bias, with_h=True, **how)
        assert h is not None
        check(h, eager.h, exact.h)
        check(dpreact, eager.layer["preact"], exact.layer["preact"])
        dx = dual.dual_backward_input(case.dh, preact, case.weight, **how)
        dweight, dbias = dual.dual_backward_weight(case.dh, preact, case.x, bias=True, **how)
        assert dbias is not None
        for name, mine in (("x", dx), ("weight", dweight), ("bias", dbias)):
            check(mine, eager.layer[name], exact.layer[name])
        check(pointwise.product_forward(preact, gate), eager.h, exact.h)
        dpreact, h = pointwise.product_backward(case.dh, preact, gate, with_h=True)
        assert h is not None
        check(h, eager.h, exact.h)
        check(dpreact, eager.layer["preact"], exact.layer["preact"])
        weights = case.x, case.weight, case.bias, case.w_p
        check(mlp.mlp_forward(*weights, case.b_p, **how), eager.out, exact.out)
        for config in ({"mlp_backward": WHOLE}, BY_GRADIENT):
            found = mlp.mlp_backward(case.dout, *weights, **{**how, "config": config})
            for name, gradient in found.items():
                check(gradient, eager.mlp[name], exact.mlp[name])
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_numbers_and_none_are_torchs(gate: str, dtype: torch.dtype) -> None:
    extremes = [100, -100, 0, 30, -30, torch.inf, -torch.inf, torch.nan, 1e-30]
    left = torch.tensor(extremes, dtype=dtype, device=DEVICE)[None].repeat(2, 1)
    right, dh = torch.randn(2, 2, len(extremes), dtype=dtype, device=DEVICE)
    # Of +inf torch's exact gelu is inf or NaN, as it takes its vectorised loop or the other one.
    known = torch.tensor([gate != "gelu" or x != torch.inf for x in extremes], device=DEVICE)
    leaf = left.double().requires_grad_()
    want = G[gate](leaf) * right.double()
    (d_left,) = torch.autograd.grad(want, leaf, dh.double())
    h = pointwise.product_forward(torch.cat((left, right), 1), gate)
    dpreact, _ = pointwise.product_backward(dh, torch.cat((left, right), 1), gate)
    near = {"rtol": 1e-5, "atol": 1e-5, "equal_nan": True}
    torch.testing.assert_close(h[:, known], want.detach()[:, known].to(dtype), **near)
    torch.testing.assert_close(
        dpreact[:, : len(extremes)][:, known], d_left[:, known].to(dtype), **near
    )
