"""Signatures of tensors, by Python and compiled: they tell apart what a launch depends on."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bilinear.kernels import places

WAYS = [places._signature, places.signature]


@pytest.fixture(params=WAYS, ids=["python", "used"])
def signature(request: pytest.FixtureRequest) -> Callable[..., object]:
    if request.param is places.signature and places.signature is places._signature:
        pytest.skip("the compiled signature is not built")
    return request.param  # type: ignore[no-any-return]


def test_equal_only_for_tensors_that_lie_alike(signature: Callable[..., object]) -> None:
    x = torch.randn(6, 6)
    unlike: list[tuple[Tensor | None, ...]] = [
        (x,), (x, None), (None, x), (x, x), (None,), (), (x.view(4, 9),), (x.view(36),),
        (x.view(6, 6, 1),), (x.view(1, 6, 6),), (x.t(),), (x[::2],), (x[:, ::2],), (x[:3],),
        (x[:1].expand(6, 6),), (x.double(),), (x.half(),), (x.bfloat16(),), (x.long(),),
        (x.to(torch.complex64),), (x.bool(),), (x[:0],), (x.sum(),),
        (x.as_strided((6, 6), (2, 1)),),
    ]  # fmt: skip
    found = [signature(*given) for given in unlike]
    for one, other in itertools.combinations(found, 2):
        assert one != other
    for given, before in zip(unlike, found, strict=True):
        copies = [None if t is None else torch.empty_strided(t.shape, t.stride(), dtype=t.dtype)
                  for t in given]  # fmt: skip
        assert signature(*copies) == before
        assert hash(signature(*copies)) == hash(before)
    parameter = torch.nn.Parameter(x)
    assert signature(parameter, None, parameter) == signature(x, None, x.clone())


def test_what_is_not_plain_equals_nothing(signature: Callable[..., object]) -> None:
    class Subclass(Tensor):
        pass

    x = torch.randn(3, 4)
    others = [
        x.as_subclass(Subclass), x.to("meta"), x.to_sparse(), [1.0], 2, "x", torch.nn.Linear(2, 2),
        torch.randn(3, 4, dtype=torch.complex64).conj().imag,
    ]  # fmt: skip
    for other in others:
        assert not places.are_plain(other)
        for given in ((other,), (x, other), (other, x)):
            assert signature(*given) != signature(*given)
    many = [x] * 9
    assert isinstance(hash(signature(*many)), int)


def test_more_tensors_than_a_call_has_are_still_told_apart(
    signature: Callable[..., object],
) -> None:
    x = torch.randn(3, 4)
    assert signature(*[x] * 9) != signature(*[x] * 8)
    deep = torch.empty([1] * 20)
    assert signature(deep) != signature(deep[None])


@pytest.mark.parametrize("kinds", [places._kinds, places.kinds], ids=["python", "used"])
def test_kinds_are_those_that_triton_compiles_for(kinds: Callable[..., object]) -> None:
    x = torch.zeros(64)
    unlike = [(x,), (x[1:],), (None,), (x, x), (x, None), (x.double(),), (x.half(),), (x.int(),),
              (x.bfloat16(),), (x.bool(),), (x.byte(),), (x.half()[1:],)]  # fmt: skip
    for one, other in itertools.combinations(unlike, 2):
        assert kinds(*one) != kinds(*other)
    assert kinds(x[4:], x[3:]) == kinds(x.view(8, 8), x[1::2]) != kinds(x[3:], x[4:])
    assert kinds(x[:0]) == kinds(x)


def test_what_is_kept_is_bounded() -> None:
    kept: places.Kept[int] = places.Kept()
    kept.most = 3
    for i in range(10):
        assert kept.keep(i, -i) == -i
        assert kept[i] == -i
        assert len(kept) <= 3
