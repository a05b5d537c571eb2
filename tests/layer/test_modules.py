"""The modules take the reference's weights and compute the same."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bilinear
from bilinear import Bilinear, BilinearMLP, functional, reference


@pytest.fixture(autouse=True)
def _function_path(paths: Callable[..., None]) -> None:
    paths(small=0)


def pairs(bias: bool) -> list[tuple[nn.Module, nn.Module]]:
    """The library's module and the reference's, with different weights; input width is 14."""
    return [
        (Bilinear(14, 5, bias=bias), reference.Bilinear(14, 5, bias=bias)),
        (
            BilinearMLP(14, 5, 7, bias=bias),
            reference.Model(reference.ModelConfig(7, 5, bias)),
        ),
    ]


@pytest.mark.parametrize("bias", [False, True])
def test_state_dict_goes_both_ways(bias: bool) -> None:
    x = torch.randn(3, 14)
    for ours, theirs in pairs(bias):
        shapes = {name: t.shape for name, t in ours.state_dict().items()}
        assert shapes == {name: t.shape for name, t in theirs.state_dict().items()}
        assert not torch.equal(ours(x), theirs(x))
        ours.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours(x), theirs(x))
        fresh = copy.deepcopy(theirs)
        for parameter in fresh.parameters():
            nn.init.zeros_(parameter)
        fresh.load_state_dict(ours.state_dict())
        torch.testing.assert_close(ours(x), fresh(x))


@pytest.mark.parametrize("bias", [False, True])
def test_initialised_as_the_reference_is(bias: bool) -> None:
    torch.manual_seed(3)
    ours = [module for module, _ in pairs(bias)]
    torch.manual_seed(3)
    made = [
        Bilinear(14, 5, bias=bias),
        reference.Bilinear(14, 5, bias=bias),
        BilinearMLP(14, 5, 7, bias=bias),
    ]
    for a, b in zip(ours[0].parameters(), made[0].parameters(), strict=True):
        assert torch.equal(a, b)
    torch.manual_seed(4)
    mlp = BilinearMLP(14, 5, 7, bias=bias)
    torch.manual_seed(4)
    model = reference.Model(reference.ModelConfig(7, 5, bias))
    for a, b in zip(mlp.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
    torch.manual_seed(4)
    made[2].reset_parameters()  # type: ignore[operator]
    for a, b in zip(made[2].parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_weights_by_name() -> None:
    layer, mlp = Bilinear(6, 4), BilinearMLP(6, 4, 3)
    assert (layer.d_in, layer.d_out) == (6, 4)
    for module in (layer, mlp):
        x = torch.randn(2, 6)
        h = (x @ module.w_l.t()) * (x @ module.w_r.t())
        torch.testing.assert_close(module(x), h if module is layer else h @ mlp.w_p.t())
    assert layer.w_l.untyped_storage().data_ptr() == layer.weight.untyped_storage().data_ptr()
    assert repr(layer) == "Bilinear(d_in=6, d_out=4, bias=False, recompute=False, gate='identity')"
    assert "(bi_linear): Bilinear(d_in=6, d_out=4" in repr(mlp)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_deepcopy_and_pickle(clone: Callable[[Any], Any]) -> None:
    x = torch.randn(3, 6)
    for module in (Bilinear(6, 4, bias=True, recompute=True), BilinearMLP(6, 4, 3)):
        twin = clone(module)
        assert torch.equal(twin(x), module(x))
        assert repr(twin) == repr(module)
        nn.init.zeros_(twin.w_l)
        assert module(x).abs().sum() > 0


def test_tied_weights_add_their_gradients() -> None:
    one, two = Bilinear(4, 4), Bilinear(4, 4)
    two.weight = one.weight
    x = torch.randn(3, 4)
    two(one(x)).sum().backward()
    weight = one.weight.detach().clone().requires_grad_()

    def plain(x: Tensor) -> Tensor:
        left, right = (x @ weight.t()).chunk(2, -1)
        return left * right

    plain(plain(x)).sum().backward()
    torch.testing.assert_close(one.weight.grad, weight.grad)


def test_hooks_on_the_inner_modules_fire_and_may_change_h() -> None:
    mlp, x, seen = BilinearMLP(6, 4, 3), torch.randn(2, 6), []
    plain = mlp(x)
    handle = mlp.bi_linear.register_forward_hook(lambda m, i, h: seen.append(h) or 2 * h)
    torch.testing.assert_close(mlp(x), 2 * plain)
    torch.testing.assert_close(seen[0], mlp.bi_linear(x) / 2)
    handle.remove()
    assert type(mlp(x).grad_fn).__name__ == "BilinearFunctionBackward"


def test_recompute_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (Bilinear(6, 4, recompute=True), BilinearMLP(6, 4, 3, recompute=True)):
        saved: list[Tensor] = []

        def pack(tensor: Tensor, saved: list[Tensor] = saved) -> Tensor:
            saved.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            module(torch.randn(50, 6))
        assert sorted(t.shape[0] for t in saved if t.shape[0] == 50) == [50]


def test_device_and_dtype() -> None:
    mlp = BilinearMLP(6, 4, 3, bias=True, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in mlp.parameters()} == {("meta", torch.bfloat16)}
    assert mlp(torch.empty(2, 6, device="meta", dtype=torch.bfloat16)).shape == (2, 3)


def test_public_names() -> None:
    for name in ("Bilinear", "BilinearMLP", "fuse", "unfuse", "explain", "functional"):
        assert name in bilinear.__all__
        assert getattr(bilinear, name) is getattr(bilinear, name)
    assert bilinear.functional is functional
    assert callable(bilinear.fuse)
    assert callable(bilinear.explain)
