"""What was made ready for a call is used for later ones only where it fits them.

`through_triton_kernels.py` runs these on the Triton kernels, too.
"""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from bilinear.functional import bilinear, bilinear_mlp
from bilinear.layer import eager, select, triton_kernels

M, D_IN, D, D_OUT = 7, 6, 4, 3
MLP = pytest.mark.parametrize("mlp", [False, True])
Layer = Callable[..., Tensor]


def layers(mlp: bool) -> tuple[list[Tensor], Layer, Layer]:
    """Weights, the layer of x and weights, and torch's composition of the same."""
    shapes = [(2 * D, D_IN), (2 * D,), *([(D_OUT, D), (D_OUT,)] if mlp else [])]
    weights = [torch.randn(shape).requires_grad_() for shape in shapes]
    if mlp:
        return weights, lambda x, w, b, w_p, b_p: bilinear_mlp(x, w, w_p, b, b_p), eager.compose
    return weights, bilinear, eager.compose


def laid_out(x: Tensor) -> list[Tensor]:
    """The numbers of x (m, n), in memory of other strides and of other leading shapes."""
    wide = torch.zeros(2 * x.shape[0], 3 * x.shape[1])
    wide[::2, ::3] = x
    return [x, x.t().contiguous().t(), wide[::2, ::3], x.view(1, *x.shape), x.clone()]


def assert_alike(got: Tensor, want: Tensor, leaves: list[Tensor], douts: list[Tensor]) -> None:
    """Equal outputs and gradients, for each dout and again, with every subset of one leaf."""
    torch.testing.assert_close(got, want)
    for dout in douts:
        for some in (leaves, *([leaf] for leaf in leaves), leaves):
            found = [torch.autograd.grad(out, some, dout, retain_graph=True) for out in (got, want)]
            torch.testing.assert_close(*found)


@MLP
def test_other_strides_shapes_and_gradients(mlp: bool) -> None:
    weights, layer, composed = layers(mlp)
    numbers = torch.randn(M, D_IN)
    for _ in range(2):
        for x in laid_out(numbers):
            x = x.detach().requires_grad_()
            got, want = layer(x, *weights), composed(x, *weights)
            dout = torch.randn(M, want.shape[-1])
            douts = [one.view(want.shape) if one.dim() != want.dim() else one
                     for one in laid_out(dout)[:3]]  # fmt: skip
            douts.append(torch.ones(()).expand(want.shape))
            assert_alike(got, want, [x, *weights], douts)


@MLP
def test_weights_of_other_strides(mlp: bool) -> None:
    weights, layer, composed = layers(mlp)
    x = torch.randn(M, D_IN, requires_grad=True)
    for _ in range(3):
        got, want = layer(x, *weights), composed(x, *weights)
        assert_alike(got, want, [x, *weights], [torch.randn(want.shape)])
        for weight in weights:
            weight.data = laid_out(weight.data)[1] if weight.dim() == 2 else weight.data.clone()


@MLP
def test_data_replaced_between_forward_and_backward(mlp: bool) -> None:
    """Backward takes the numbers that a weight holds then, however they lie."""
    weights, layer, _ = layers(mlp)
    x = torch.randn(M, D_IN, requires_grad=True)
    layer(x, *weights).sum().backward()  # what is kept fits these weights
    before, others = [w.data for w in weights], [torch.randn_like(w) for w in weights]
    dout, found = torch.randn(M, D_OUT if mlp else D), []
    for at in range(3):
        for weight, data in zip(weights, before, strict=True):
            weight.data = data
        out = layer(x, *weights)
        for weight, data in zip(weights, others, strict=True):
            weight.data = laid_out(data)[at] if data.dim() == 2 else data
        found.append(torch.autograd.grad(out, [x, *weights], dout))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


@MLP
@pytest.mark.parametrize("wrong", [(2, 2), (2 * D, D_IN + 1), (2 * D + 2, D_IN)])
def test_data_of_another_shape_is_refused(mlp: bool, wrong: tuple[int, int]) -> None:
    weights, layer, _ = layers(mlp)
    x = torch.randn(M, D_IN, requires_grad=True)
    out = layer(x, *weights)
    weights[0].data, weights[1].data = torch.randn(wrong), torch.randn(wrong[0])  # they fit
    with pytest.raises((ValueError, RuntimeError), match=r"expected (no change|shape)"):
        out.sum().backward()


@MLP
def test_saved_tensors_that_come_back_with_other_strides(mlp: bool) -> None:
    weights, layer, composed = layers(mlp)
    x = torch.randn(M, D_IN, requires_grad=True)
    want = composed(x, *weights)
    for which in range(3):
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: t, lambda t, at=which: laid_out(t)[at] if t.dim() == 2 else t
        ):
            got = layer(x, *weights)
        assert_alike(got, want, [x, *weights], [torch.randn(want.shape)])


@MLP
@pytest.mark.parametrize("change", [lambda t: t[:, 1:], lambda t: t.double(), lambda t: t[:-1]])
def test_saved_tensors_that_come_back_changed_are_refused(
    mlp: bool, change: Callable[[Tensor], Tensor]
) -> None:
    """[L, R], where it is saved."""
    weights, layer, _ = layers(mlp)
    x = torch.randn(M, D_IN, requires_grad=True)
    layer(x, *weights).sum().backward()
    changed = []

    def unpack(tensor: Tensor) -> Tensor:
        if tensor.shape == (M, 2 * D):
            changed.append(tensor)
            return change(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
        out = layer(x, *weights).sum()
    said = ""
    try:
        out.backward()
    except (RuntimeError, ValueError) as error:
        said = str(error)
    assert ("[L, R]: expected" in said) == bool(changed)


@MLP
def test_a_lazy_minus_sign_is_formed(mlp: bool) -> None:
    """A conjugate's imaginary part: its memory has the negative of its values."""
    weights, layer, composed = layers(mlp)
    for negative in (False, True, False):
        x, dout = (
            torch.randn(M, n, dtype=torch.complex64).conj().imag
            for n in (D_IN, D_OUT if mlp else D)
        )
        assert x.is_neg()
        x, dout = (t if negative else t.resolve_neg() for t in (x, dout))
        got, want = layer(x, *weights), composed(x, *weights)
        assert_alike(got, want, weights, [dout])


@MLP
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_tangents_of_a_gradient_are_carried_through_backward(mlp: bool) -> None:
    """Forward mode around backward alone: forward saw no dual tensor."""
    weights, layer, composed = layers(mlp)
    x = torch.randn(M, D_IN, requires_grad=True)
    found = []
    for out in (layer(x, *weights), composed(x, *weights)):
        torch.manual_seed(0)
        dout, tangent = torch.randn(out.shape), torch.randn(out.shape)
        torch.autograd.grad(out, [x, *weights], dout, retain_graph=True)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(dout, tangent)
            grads = torch.autograd.grad(out, [x, *weights], dual)
            found.append([forward_ad.unpack_dual(grad) for grad in grads])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got.primal, want.primal)
        torch.testing.assert_close(got.tangent, want.tangent)


@pytest.mark.skipif(triton_kernels.INTERPRETED, reason="the interpreter serves one thread alone")
def test_threads_that_meet_a_call_at_once() -> None:
    weights, layer, composed = layers(True)
    x = torch.randn(M, D_IN)
    want = composed(x, *weights)
    select._chosen.clear()
    start, found = threading.Barrier(4), []

    def call() -> None:
        start.wait()
        out = layer(x, *weights)
        found.append((out, torch.autograd.grad(out, weights, torch.ones_like(out))))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gradients = torch.autograd.grad(want, weights, torch.ones_like(want))
    assert len(found) == 4
    for out, grads in found:
        torch.testing.assert_close(out, want)
        torch.testing.assert_close(grads, gradients)
