import pytest
import torch
from kernel_checks import BY_GRADIENT, CASES, DEVICE, DTYPES, TILE, Eager, assert_close, draw

from bilinear.experiment.task import modular_addition
from bilinear.kernels.mlp import GRADIENTS, mlp_backward, mlp_forward
from bilinear.kernels.tiles import Tile
from bilinear.reading.exact_circuit import exact_circuit

# One pass needs a tile that covers every size.
WHOLE = Tile(block_m=32, block_d=128, block_n=128, block_k=256, num_warps=4, num_stages=1)
CONFIGS = {"one pass": {"mlp_backward": WHOLE}, "by gradient": BY_GRADIENT}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "layout", "bias"), CASES)
def test_forward(size, layout, bias, dtype):
    case = draw(size, dtype, bias=bias, layout=layout)
    eager, exact = Eager(case), Eager(case.to(torch.float64))
    out = mlp_forward(
        case.x, case.weight, case.bias, case.w_p, case.b_p, precision="ieee", config=TILE
    )
    assert_close(out, eager.out, exact.out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", CONFIGS)
@pytest.mark.parametrize(("size", "layout", "bias"), CASES)
def test_backward(size, layout, bias, way, dtype):
    case = draw(size, dtype, bias=bias, layout=layout)
    eager, exact = Eager(case), Eager(case.to(torch.float64))
    expected, best = eager.mlp_gradients(), exact.mlp_gradients()
    grads = mlp_backward(
        case.dout, case.x, case.weight, case.bias, case.w_p, precision="ieee", config=CONFIGS[way]
    )
    assert set(grads) == set(GRADIENTS)
    for name in GRADIENTS:
        assert_close(grads[name], expected[name], best[name], exact.summed.get(name))


@pytest.mark.parametrize("way", CONFIGS)
@pytest.mark.parametrize("needs", [("x",), ("weight",), ("bias",), ("w_p", "x"), ("b_p",), ()])
def test_only_what_is_needed(needs, way):
    case = draw((20, 5, 7, 3), torch.float32, bias=True)
    eager, exact = Eager(case), Eager(case.to(torch.float64))
    expected, best = eager.mlp_gradients(), exact.mlp_gradients()
    grads = mlp_backward(
        case.dout, case.x, case.weight, case.bias, case.w_p,
        precision="ieee", needs=needs, config=CONFIGS[way],
    )  # fmt: skip
    assert set(grads) == set(needs)
    for name in needs:
        assert_close(grads[name], expected[name], best[name], exact.summed.get(name))


@pytest.mark.parametrize("way", CONFIGS)
def test_many_ordered_shares_and_a_zero_stride_gradient(way):
    case = draw((700, 5, 7, 3), torch.float32, bias=True)
    case.dout = torch.ones((), device=DEVICE).expand(700, 3)
    eager, exact = Eager(case), Eager(case.to(torch.float64))
    expected, best = eager.mlp_gradients(), exact.mlp_gradients()
    runs = [
        mlp_backward(
            case.dout, case.x, case.weight, case.bias, case.w_p,
            precision="ieee", config=CONFIGS[way],
        )
        for _ in range(2)
    ]  # fmt: skip
    for name in GRADIENTS:
        assert_close(runs[0][name], expected[name], best[name], exact.summed.get(name))
        assert torch.equal(runs[0][name], runs[1][name])


def test_default_tiles():
    case = draw((65, 33, 17, 20), torch.float32, bias=True)
    eager, exact = Eager(case), Eager(case.to(torch.float64))
    out = mlp_forward(case.x, case.weight, case.bias, case.w_p, case.b_p, precision="ieee")
    assert_close(out, eager.out, exact.out)
    grads = mlp_backward(case.dout, case.x, case.weight, case.bias, case.w_p, precision="ieee")
    for name, best in exact.mlp_gradients().items():
        assert_close(grads[name], eager.mlp_gradients()[name], best, exact.summed.get(name))


def test_no_rows():
    x, dout = torch.zeros(0, 5, device=DEVICE), torch.zeros(0, 4, device=DEVICE)
    weight, w_p = torch.ones(6, 5, device=DEVICE), torch.ones(4, 3, device=DEVICE)
    assert mlp_forward(x, weight, None, w_p, None, precision="ieee").shape == (0, 4)
    grads = mlp_backward(dout, x, weight, None, w_p, precision="ieee")
    shapes = {"x": (0, 5), "weight": (6, 5), "bias": (6,), "w_p": (4, 3), "b_p": (4,)}
    for name, shape in shapes.items():
        assert torch.equal(grads[name], torch.zeros(shape, device=DEVICE))


def test_unknown_gradient_is_named():
    case = draw((2, 3, 4, 5), torch.float32, bias=False)
    with pytest.raises(ValueError, match=r"needs: expected names among .* got \['dh'\]"):
        mlp_backward(
            case.dout, case.x, case.weight, None, case.w_p, precision="ieee", needs=("dh",)
        )


@pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")
@pytest.mark.parametrize(("dtype", "large"), [(torch.float32, 1e20), (torch.float16, 300.0)])
@pytest.mark.parametrize("d", [5, 16])
def test_a_unit_that_overflows_is_infinite_as_in_eager(dtype, large, d):
    """Tiles reach past the last unit and the last row, which overflow here."""
    case = draw((5, 3, d, 4), dtype, bias=True)
    case.bias[d - 1 :: d] = large
    case.x[-1] = 0
    case.w_p.abs_()
    case.dout.abs_().add_(1)
    h = Eager(case).h
    assert h[-1, -1].isinf()
    out = mlp_forward(case.x, case.weight, case.bias, case.w_p, None, precision="ieee", config=TILE)
    assert (out.isinf() == (h @ case.w_p.T).isinf()).all()
    assert not out.isnan().any()
    grads = mlp_backward(
        case.dout, case.x, case.weight, case.bias, case.w_p, precision="ieee", needs=("w_p",),
        config=BY_GRADIENT,
    )  # fmt: skip
    assert (grads["w_p"].isinf() == (case.dout.T @ h).isinf()).all()
    assert not grads["w_p"].isnan().any()


def test_exact_circuit_is_right_everywhere():
    """Margins of 1e-5 of the logits' scale: only true float32 keeps all 4,096 pairs right."""
    circuit = exact_circuit(64)
    x, label = (t.to(DEVICE) for t in modular_addition(64).tensors)
    weight = torch.cat([circuit["w_l"], circuit["w_r"]]).to(DEVICE)
    tile = Tile(block_m=512, block_d=16, block_n=64, block_k=128, num_warps=4, num_stages=1)
    config = None if DEVICE == "cuda" else tile  # few programs: the interpreter takes its time
    logits = mlp_forward(
        x, weight, None, circuit["w_p"].to(DEVICE), None, precision="ieee", config=config
    )
    assert (logits.argmax(1) == label).all()
