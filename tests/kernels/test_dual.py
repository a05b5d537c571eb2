from dataclasses import replace

import pytest
import torch
from kernel_checks import CASES, DEVICE, DTYPES, TILE, Eager, absolute_error, assert_close, draw

from bilinear.kernels import dual, places
from bilinear.kernels.dual import (
    dual_backward,
    dual_backward_input,
    dual_backward_weight,
    dual_forward,
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "layout", "bias"), CASES)
def test_forward(size, layout, bias, dtype):
    case = draw(size, dtype, bias=bias, layout=layout)
    eager, exact = Eager(case), Eager(case.to(torch.float64))
    h, preact = dual_forward(
        case.x, case.weight, case.bias, precision="ieee", save_preact=True, config=TILE
    )
    assert_close(h, eager.h, exact.h)
    assert_close(preact, eager.preact, exact.preact)
    assert h.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "layout", "bias"), CASES)
def test_preactivation_gradient_recomputed(size, layout, bias, dtype):
    case = draw(size, dtype, bias=bias, layout=layout)
    eager, exact = Eager(case), Eager(case.to(torch.float64))
    dpreact, h = dual_backward(
        case.dh, case.x, case.weight, case.bias, precision="ieee", with_h=True, config=TILE
    )
    assert_close(dpreact, eager.dpreact(case.dh), exact.dpreact(case.dh.double()))
    assert_close(h, eager.h, exact.h)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "layout", "bias"), CASES)
def test_gradients_formed_on_the_fly(size, layout, bias, dtype):
    case = draw(size, dtype, bias=bias, layout=layout)
    eager, exact = Eager(case), Eager(case.to(torch.float64))
    expected, best = eager.gradients(case.dh), exact.gradients(case.dh.double())
    dx = dual_backward_input(case.dh, eager.preact, case.weight, precision="ieee", config=TILE)
    dweight, dbias = dual_backward_weight(
        case.dh, eager.preact, case.x, precision="ieee", bias=bias, config=TILE
    )
    assert_close(dx, expected["x"], best["x"])
    assert_close(dweight, expected["weight"], best["weight"])
    if bias:
        assert_close(dbias, expected["bias"], best["bias"], exact.summed["bias"])
    else:
        assert dbias is None


def test_default_tiles():
    case = draw((130, 65, 131, 1), torch.float32, bias=True)
    eager, exact = Eager(case), Eager(case.to(torch.float64))
    h, preact = dual_forward(case.x, case.weight, case.bias, precision="ieee")
    assert preact is None
    assert_close(h, eager.h, exact.h)
    dweight, _ = dual_backward_weight(case.dh, eager.preact, case.x, precision="ieee", bias=False)
    expected, best = eager.gradients(case.dh), exact.gradients(case.dh.double())
    assert_close(dweight, expected["weight"], best["weight"])


@pytest.mark.skipif(DEVICE == "cuda", reason="the yardstick is numpy's matmul, the interpreter's")
def test_error_is_that_of_the_unfused_sum():
    # With the same matmul underneath, fusing costs no accuracy: at most 1.1 times the error.
    case = draw((257, 513, 129, 1), torch.float32, bias=True)
    exact = Eager(case.to(torch.float64))
    preact = torch.from_numpy(case.x.numpy() @ case.weight.numpy().T) + case.bias
    unfused = preact[:, :129] * preact[:, 129:]
    h, _ = dual_forward(case.x, case.weight, case.bias, precision="ieee", config=TILE)
    assert absolute_error(h, exact.h) <= 1.1 * absolute_error(unfused, exact.h)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_stride_gradient(dtype):
    case = draw((65, 17, 33, 1), dtype, bias=True)
    dh = torch.ones((), dtype=dtype, device=DEVICE).expand(65, 33)
    eager, exact = Eager(case), Eager(case.to(torch.float64))
    dpreact, _ = dual_backward(dh, case.x, case.weight, case.bias, precision="ieee", config=TILE)
    assert_close(dpreact, eager.dpreact(dh), exact.dpreact(dh.double()))
    dx = dual_backward_input(dh, eager.preact, case.weight, precision="ieee", config=TILE)
    assert_close(dx, eager.gradients(dh)["x"], exact.gradients(dh.double())["x"])
    x = case.x[:1].expand(65, 17)
    dweight, _ = dual_backward_weight(
        case.dh, eager.preact, x, precision="ieee", bias=False, config=TILE
    )
    assert_close(
        dweight, eager.dpreact(case.dh).T @ x, exact.dpreact(case.dh.double()).T @ x.double()
    )


def test_transposed_weight():
    case = draw((33, 17, 20, 1), torch.float32, bias=False)
    weight = case.weight.T.contiguous().T
    eager, exact = Eager(case), Eager(case.to(torch.float64))
    h, _ = dual_forward(case.x, weight, None, precision="ieee", config=TILE)
    assert_close(h, eager.h, exact.h)
    dx = dual_backward_input(case.dh, eager.preact, weight, precision="ieee", config=TILE)
    expected, best = eager.gradients(case.dh), exact.gradients(case.dh.double())
    assert_close(dx, expected["x"], best["x"])


def test_no_rows():
    x = torch.zeros(0, 5, device=DEVICE)
    weight, dh, preact = (torch.zeros(s, device=DEVICE) for s in ((6, 5), (0, 3), (0, 6)))
    h, pair = dual_forward(x, weight, None, precision="ieee", save_preact=True)
    assert h.shape == (0, 3)
    assert pair.shape == (0, 6)
    assert dual_backward(dh, x, weight, None, precision="ieee")[0].shape == (0, 6)
    assert dual_backward_input(dh, preact, weight, precision="ieee").shape == (0, 5)
    dweight, dbias = dual_backward_weight(dh, preact, x, precision="ieee", bias=True)
    assert torch.equal(dweight, torch.zeros(6, 5, device=DEVICE))
    assert torch.equal(dbias, torch.zeros(6, device=DEVICE))


def test_weight_gradient_sums_many_ordered_shares():
    case = draw((1000, 5, 7, 1), torch.float32, bias=True)
    eager, exact = Eager(case), Eager(case.to(torch.float64))
    tile = replace(TILE, block_m=16)
    runs = [
        dual_backward_weight(
            case.dh, eager.preact, case.x, precision="ieee", bias=True, config=tile
        )
        for _ in range(2)
    ]
    expected, best = eager.gradients(case.dh), exact.gradients(case.dh.double())
    assert_close(runs[0][0], expected["weight"], best["weight"])
    assert_close(runs[0][1], expected["bias"], best["bias"], exact.summed["bias"])
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])


def test_offsets_beyond_32_bits_are_seen():
    assert places.is_wide(((2, 9), (2**31, 1)))
    assert places.is_wide(None, places.rows(2**20, 2**11 + 1))
    assert not places.is_wide(places.rows(2**20, 2**11), ((2**20, 2**12), (0, 1)))


def test_kernels_with_wide_offsets(monkeypatch):
    ready = dual.ready_forward, dual.ready_backward, dual.ready_input, dual.ready_weight
    for known in ready:
        known.cache_clear()
    monkeypatch.setattr(dual, "is_wide", lambda *places: True)
    case = draw((65, 17, 33, 1), torch.float32, bias=True)
    eager, exact = Eager(case), Eager(case.to(torch.float64))
    expected, best = eager.gradients(case.dh), exact.gradients(case.dh.double())
    dpreact, _ = dual_backward(
        case.dh, case.x, case.weight, case.bias, precision="ieee", config=TILE
    )
    assert_close(dpreact, eager.dpreact(case.dh), exact.dpreact(case.dh.double()))
    dx = dual_backward_input(case.dh, eager.preact, case.weight, precision="ieee", config=TILE)
    assert_close(dx, expected["x"], best["x"])
    dweight, _ = dual_backward_weight(
        case.dh, eager.preact, case.x, precision="ieee", bias=False, config=TILE
    )
    assert_close(dweight, expected["weight"], best["weight"])
    for known in ready:
        known.cache_clear()


@pytest.mark.gpu
def test_rows_beyond_32_bit_offsets():
    case = draw((2, 9, 5, 1), torch.float32, bias=False)
    storage = torch.zeros(2**31 + 16, dtype=torch.float32, device=DEVICE)
    x = storage.as_strided((2, 9), (2**31, 1)).copy_(case.x)
    h, _ = dual_forward(x, case.weight, None, precision="ieee", config=TILE)
    assert_close(h, Eager(case).h, Eager(case.to(torch.float64)).h)


def test_precision_is_named_in_the_error():
    case = draw((2, 3, 4, 1), torch.float32, bias=False)
    with pytest.raises(ValueError, match=r"precision: expected one of .* got 'high'"):
        dual_forward(case.x, case.weight, None, precision="high", config=TILE)


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "bound"), [("tf32", 2e-3), ("tf32x3", 4e-6)])
def test_reduced_float32(precision, bound):
    case = draw((300, 257, 129, 1), torch.float32, bias=True)
    exact = Eager(case.to(torch.float64))
    h, _ = dual_forward(case.x, case.weight, case.bias, precision=precision)
    assert (h.double() - exact.h).norm() <= bound * exact.h.norm()
