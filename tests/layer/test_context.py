"""`context` detects compilers, transforms, dispatch modes and tensor subclasses."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from bilinear.kernels.places import are_plain
from bilinear.layer.call import PLAIN, TRACED, TRANSFORMED
from bilinear.layer.context import (
    autocast,
    autocast_dtype,
    context_of,
    context_of_gradient,
    is_undisturbed,
    is_undisturbed_backward,
)

CPU = torch.device("cpu")


class Own(torch.Tensor):
    """A user's subclass of Tensor."""


def test_contexts_of_calls() -> None:
    x = torch.zeros(2)
    assert is_undisturbed()
    assert context_of(x, torch.nn.Parameter(x), None) == PLAIN
    assert context_of(x.as_subclass(Own)) == TRACED
    assert context_of(x.to("meta")) == TRACED
    assert not are_plain(x, x.to("meta"))
    with FakeTensorMode():
        assert context_of(x) == TRACED
        assert not is_undisturbed()
    with forward_ad.dual_level():
        assert context_of(x) == TRANSFORMED
        assert not is_undisturbed()
    found = []
    torch.func.vmap(lambda x: found.append((context_of(x), is_undisturbed())) or x)(x)
    assert found == [(TRANSFORMED, False)]


def test_contexts_of_gradients() -> None:
    x = torch.zeros(2)
    assert context_of_gradient(x) == TRANSFORMED  # grad mode is on: it's differentiated itself
    with torch.no_grad():
        assert context_of_gradient(x) == PLAIN
        assert context_of_gradient(x.to("meta")) == TRACED
        assert is_undisturbed_backward()
        with FakeTensorMode():
            assert context_of_gradient(x) == TRACED
            assert not is_undisturbed_backward()
        with forward_ad.dual_level():
            assert context_of_gradient(x) == TRANSFORMED
            assert not is_undisturbed_backward()
    assert not is_undisturbed_backward()


def test_autocast() -> None:
    x, whole, wide = torch.zeros(2), torch.zeros(2).int(), torch.zeros(2).double()
    assert autocast(x, None) == (x, None)
    assert autocast("x", 1) == ("x", 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_undisturbed()
        dtypes = [t.dtype for t in autocast(x, whole, wide)]
        assert dtypes == [torch.bfloat16, torch.int32, torch.float64]
        assert autocast_dtype(torch.float16, CPU) == torch.bfloat16
        assert autocast_dtype(torch.float32, torch.device("meta")) == torch.float32
