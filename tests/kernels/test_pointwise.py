import pytest
import torch
from kernel_checks import DEVICE, DTYPES, LAYOUTS, SIZES, Eager, assert_close, draw

from bilinear.kernels.pointwise import product_backward, product_forward


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [*SIZES, (65, 2, 1025, 1)])
def test_products(size, layout, dtype):
    case = draw(size, dtype, bias=True, layout=layout)
    eager = Eager(case)
    preact = eager.preact.T.contiguous().T if layout == "transposed" else eager.preact
    left, right = preact.double().chunk(2, dim=1)
    dh = case.dh.double()
    exact = torch.cat([dh * right, dh * left], dim=1)
    assert_close(product_forward(preact), eager.h, left * right)
    dpreact, h = product_backward(case.dh, preact, with_h=True)
    assert_close(dpreact, eager.dpreact(case.dh), exact)
    assert_close(h, eager.h, left * right)
    assert product_backward(case.dh, preact)[1] is None


def test_zero_stride_gradient():
    case = draw((17, 3, 5, 1), torch.float32, bias=False)
    eager = Eager(case)
    dh = torch.full((), 2.0, device=DEVICE).expand(17, 5)
    dpreact, _ = product_backward(dh, eager.preact)
    assert torch.equal(dpreact, eager.dpreact(dh))


def test_no_rows():
    preact = torch.zeros(0, 6, device=DEVICE)
    assert product_forward(preact).shape == (0, 3)
    assert product_backward(preact[:, :3], preact)[0].shape == (0, 6)
