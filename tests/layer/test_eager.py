"""The composition against the formula, its gradients against autograd's."""

import pytest
import torch
from torch import Tensor

from bilinear.layer import eager
from bilinear.layer.call import Call


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


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("projection", [False, True])
def test_the_formula_and_its_gradients(bias: bool, projection: bool) -> None:
    given = arguments(bias, projection)
    x, weight, b, w_p, b_p = given
    assert x is not None
    assert weight is not None
    zero = torch.zeros(6, dtype=torch.float64)
    left = x @ weight[:3].t() + (zero if b is None else b)[:3]
    right = x @ weight[3:].t() + (zero if b is None else b)[3:]
    want = left * right if w_p is None else (left * right) @ w_p.t() + (0 if b_p is None else b_p)
    out = eager.compose(*given)
    torch.testing.assert_close(out, want)

    call = Call(7, 5, 3, 4 if projection else None, x.dtype, x.device)
    assert eager.forward(call, *given, save_preact=False)[1] is None
    dout = torch.randn_like(out)
    needs = [tensor is not None for tensor in given]
    found = eager.backward(call, dout, x, weight, b, w_p, None, needs)
    wanted = [tensor for tensor in given if tensor is not None]
    for a, c in zip(
        (gradient for gradient in found if gradient is not None),
        torch.autograd.grad(want, wanted, dout),
        strict=True,
    ):
        torch.testing.assert_close(a, c)
