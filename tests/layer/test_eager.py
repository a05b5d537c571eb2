"""`eager.compose` against the formula, and `eager.backward` against autograd."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bilinear.layer import eager
from bilinear.layer.call import Call
from bilinear.layer.gates import GATES


def arguments(bias: bool, projection: bool) -> list[Tensor | None]:
    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    return [
        random(7, 5),
        random(6, 5),
        random(6) if bias else None,
        random(4, 3) if projection else None,
        random(4) if projection and bias else None,
    ]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("projection", [False, True])
def test_the_formula_and_its_gradients(gate: str, bias: bool, projection: bool) -> None:
    given = arguments(bias, projection)
    x, weight, b, w_p, b_p = given
    assert x is not None
    assert weight is not None
    zero = torch.zeros(6, dtype=torch.float64)
    gated = {
        "identity": lambda left: left,
        "silu": lambda left: left / (1 + torch.exp(-left)),
        "gelu": lambda left: left * (1 + torch.erf(left / 2**0.5)) / 2,
        "gelu_tanh": lambda left: F.gelu(left, approximate="tanh"),
        "relu": lambda left: left * (left > 0),
        "sigmoid": lambda left: 1 / (1 + torch.exp(-left)),
        "relu2": lambda left: left**2 * (left > 0),
    }[gate]
    left = gated(x @ weight[:3].t() + (zero if b is None else b)[:3])
    right = x @ weight[3:].t() + (zero if b is None else b)[3:]
    want = left * right if w_p is None else (left * right) @ w_p.t() + (0 if b_p is None else b_p)
    out = eager.compose(*given, gate=gate)
    torch.testing.assert_close(out, want)

    call = Call(7, 5, 3, 4 if projection else None, x.dtype, x.device, gate=gate)
    assert eager.forward(call, *given, save_preact=False)[1] is None
    dout = torch.randn_like(out)
    needs = [tensor is not None for tensor in given]
    found = eager.backward(call, dout, x, weight, b, w_p, None, needs=needs)
    wanted = [tensor for tensor in given if tensor is not None]
    for a, c in zip(
        (gradient for gradient in found if gradient is not None),
        torch.autograd.grad(want, wanted, dout),
        strict=True,
    ):
        torch.testing.assert_close(a, c)
