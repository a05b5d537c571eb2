"""Blocks of rows give what one block gives."""

import pytest
import torch

from bilinear.layer import blocked as rows
from bilinear.layer import eager as composed


@pytest.mark.parametrize("m", [0, 1, 7, 8, 9, 40, 41])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_blocks_equal_the_composition(
    m: int, bias: bool, keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_MIN_ELEMENTS", 0)
    monkeypatch.setattr(rows, "_BLOCK_ELEMENTS", 1)
    monkeypatch.setattr(rows, "_MIN_ROWS", 8)
    assert rows.block_rows(m, 5, 3, torch.float64) == 8
    x, weight, w_p = (torch.randn(s, dtype=torch.float64) for s in ((m, 5), (6, 5), (4, 3)))
    b = torch.randn(6, dtype=torch.float64) if bias else None
    b_p = torch.randn(4, dtype=torch.float64) if bias else None
    torch.use_deterministic_algorithms(True)  # memory that nobody wrote reads as NaN
    try:
        h, lr = rows.bilinear_forward(x, weight, b, keep=keep)
        out, lr_too = rows.bilinear_mlp_forward(x, weight, w_p, b, b_p, keep=keep)
        dh, dout = torch.randn(m, 3).double(), torch.randn(m, 4).double()
        found = rows.bilinear_backward(dh, x, weight, b, lr, (True,) * 3)
        found_mlp = rows.bilinear_mlp_backward(dout, x, weight, w_p, b, lr, (True,) * 5)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(h, composed.bilinear(x, weight, b))
    torch.testing.assert_close(out, composed.bilinear_mlp(x, weight, w_p, b, b_p))
    assert (lr is not None) == (lr_too is not None) == keep
    want = composed.bilinear_gradients(dh, x, weight, b, (True,) * 3)
    want_mlp = composed.bilinear_mlp_gradients(dout, x, weight, w_p, b, (True,) * 5)
    for a, c in zip((*found, *found_mlp), (*want, *want_mlp), strict=True):
        torch.testing.assert_close(a, c)


def test_blocks_are_taken_where_they_pay_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert rows.block_rows(16384, 64, 1024, torch.float32) == 512
    assert rows.block_rows(16384, 1024, 1024, torch.float32) == 16384
    assert rows.block_rows(16384, 64, 1024, torch.bfloat16) == 16384
    assert rows.block_rows(64, 64, 1024, torch.float32) == 64
    assert rows.block_rows(0, 64, 1024, torch.float32) == 1
