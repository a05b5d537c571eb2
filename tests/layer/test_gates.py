"""The product and its gradient, into memory of its own or given."""

import torch

from bilinear.layer.gates import product, product_backward


def test_identity() -> None:
    left, right, dh = torch.randn(3, 5, 4, dtype=torch.float64)
    h, gradient = torch.full((5, 4), torch.nan).double(), torch.full((5, 8), torch.nan).double()
    want = torch.cat((dh * right, dh * left), 1)
    for out, grad in ((None, None), (h, gradient)):
        torch.testing.assert_close(product(left, right, "identity", out), left * right)
        torch.testing.assert_close(product_backward(dh, left, right, "identity", grad), want)
    torch.testing.assert_close(h, left * right)
    torch.testing.assert_close(gradient, want)
