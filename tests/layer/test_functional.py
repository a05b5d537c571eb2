"""The layer's functions against float64, their gradients, transforms, memory and bits."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from bilinear.functional import bilinear, bilinear_mlp
from bilinear.layer import eager, matmuls
from bilinear.layer.gates import GATES

CPU_AND_GPU = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# torch's own forward mode still scripts its formulas when first used.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
DRAWS = 4


@pytest.fixture(
    autouse=True,
    params=[{}, {"compiled": False, "small": 0}],
    ids=["as they come", "as large, not compiled"],
)
def _function_path(request: pytest.FixtureRequest, paths: Callable[..., None]) -> Iterator[None]:
    """Small test sizes also run the path of large ones; unwritten memory reads as NaN."""
    paths(**request.param)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def mlp_inputs(
    m: int = 5,
    d_in: int = 6,
    d: int = 4,
    d_out: int = 3,
    *,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
) -> list[Tensor | None]:
    """x, weight, w_p, bias, b_p, all requiring gradients."""
    shapes = ((m, d_in), (2 * d, d_in), (d_out, d), (2 * d,), (d_out,))
    scales = (1, d_in**-0.5, d**-0.5, 1, 1)
    return [
        None
        if len(shape) == 1 and not bias
        else (torch.randn(shape, device=device) * scale).to(dtype).requires_grad_()
        for shape, scale in zip(shapes, scales, strict=True)
    ]


def composed_mlp(
    x: Tensor, weight: Tensor, w_p: Tensor, bias: Tensor | None = None, b_p: Tensor | None = None
) -> Tensor:
    """`eager.compose` with the arguments in `bilinear_mlp`'s order."""
    return eager.compose(x, weight, bias, w_p, b_p)


def layer_inputs(**options: Any) -> list[Tensor | None]:
    x, weight, _, bias, _ = mlp_inputs(**options)
    return [x, weight, bias]


def results(
    f: Callable[..., Tensor], inputs: list[Tensor | None], upstream: Tensor
) -> list[Tensor]:
    """Output and all gradients."""
    out = f(*inputs)
    wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, wanted, upstream)]


def room_for_luck(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """A few roundings of the norm: with few numbers eager may be exact by chance."""
    return torch.finfo(dtype).eps * (0.5 + 4 * exact.numel() ** -0.5) * exact.norm()


def wide(inputs: list[Tensor | None]) -> list[Tensor | None]:
    return [None if t is None else t.detach().double().requires_grad_() for t in inputs]


@pytest.mark.parametrize("device", CPU_AND_GPU)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_error_is_within_eagers_own(
    device: str, dtype: torch.dtype, bias: bool, recompute: bool
) -> None:
    for m, d_in, d, d_out in [(129, 17, 1, 1), (300, 65, 63, 17), (64, 3, 129, 65), (1, 1, 1, 3)]:
        squares: dict[tuple[str, int], Tensor] = {}
        for _ in range(DRAWS):
            inputs = mlp_inputs(m, d_in, d, d_out, bias=bias, dtype=dtype, device=device)
            pairs: list[tuple[Any, Any, list[Tensor | None], int]] = [
                (bilinear_mlp, composed_mlp, inputs, d_out),
                (bilinear, eager.compose, [inputs[0], inputs[1], inputs[3]], d),
            ]
            for ours, plain, arguments, width in pairs:
                upstream = torch.randn(m, width, device=device).to(dtype)
                exact = results(plain, wide(arguments), upstream.double())
                theirs = results(plain, arguments, upstream)
                mine = results(lambda *a, f=ours: f(*a, recompute=recompute), arguments, upstream)
                for i, (a, b, c) in enumerate(zip(mine, theirs, exact, strict=True)):
                    assert a.dtype == dtype
                    assert a.is_contiguous()
                    assert c.norm() > 0
                    sizes = torch.stack(
                        [(a.double() - c).norm(), (b.double() - c).norm(), room_for_luck(c, dtype)]
                    )
                    key = ours.__name__, i
                    squares[key] = squares.get(key, 0) + sizes.square()
        for key, total in squares.items():
            own, others, room = total.sqrt()
            assert own <= 1.1 * others + room, (key, m, d_in, d, d_out)


@pytest.mark.parametrize("gate", GATES)
def test_a_gates_error_is_within_eagers_own(gate: str) -> None:
    for dtype in DTYPES:
        inputs = mlp_inputs(300, 65, 63, 17, dtype=dtype)
        upstream = torch.randn(300, 17).to(dtype)

        def plain(*given: Tensor | None) -> Tensor:
            x, weight, w_p, bias, b_p = given
            return eager.compose(x, weight, bias, w_p, b_p, gate=gate)

        def ours(*given: Tensor) -> Tensor:
            return bilinear_mlp(*given, gate=gate)

        exact = results(plain, wide(inputs), upstream.double())
        theirs, mine = results(plain, inputs, upstream), results(ours, inputs, upstream)
        for a, b, c in zip(mine, theirs, exact, strict=True):
            own, others = (a.double() - c).norm(), (b.double() - c).norm()
            assert own <= 1.1 * others + room_for_luck(c, dtype), (gate, dtype)


@pytest.mark.parametrize(
    ("recompute", "bias", "gate"),
    [
        (recompute, bias, "identity")
        for recompute, bias in itertools.product([False, True], repeat=2)
    ]
    + [(False, True, gate) for gate in GATES if gate != "identity"],
)
def test_gradcheck_of_first_second_forward_and_batched(
    recompute: bool, bias: bool, gate: str
) -> None:
    inputs = mlp_inputs(3, 4, 2, 3, bias=bias)
    for f, arguments in (
        (bilinear, [inputs[0], inputs[1], inputs[3]]),
        (bilinear_mlp, inputs),
    ):

        def run(*given: Tensor, f: Any = f) -> Tensor:
            return f(*given, recompute=recompute, gate=gate)

        present = tuple(arguments)
        assert torch.autograd.gradcheck(
            run, present, check_forward_ad=True, check_batched_grad=True
        )
        assert torch.autograd.gradgradcheck(run, present, check_batched_grad=True)


def test_any_leading_shape_and_strides() -> None:
    _, weight, w_p, bias, b_p = mlp_inputs()
    big = torch.randn(6, 7, 8, dtype=torch.float64)
    for x in (
        big[0, 0, :6],
        big.transpose(0, 2)[..., :6],
        big.permute(1, 2, 0)[::2, ::3],
        big[:, :, ::2][..., :1].expand(6, 7, 6),
        big[0, 0, 0].expand(2, 6),
        big[:0, :, :6],
        big.flip(0)[:1, :1, 1:7],
    ):
        x = x.detach().requires_grad_()
        for ours, plain, arguments in (
            (bilinear, eager.compose, [x, weight, bias]),
            (bilinear_mlp, composed_mlp, [x, weight, w_p, bias, b_p]),
        ):
            upstream = torch.ones((), dtype=x.dtype).expand(plain(*arguments).shape)
            for a, b in zip(
                results(ours, arguments, upstream),
                results(plain, arguments, upstream),
                strict=True,
            ):
                assert a.shape == b.shape
                torch.testing.assert_close(a, b)


def test_gradients_nobody_asked_for_are_not_formed(
    monkeypatch: pytest.MonkeyPatch, paths: Callable[..., None]
) -> None:
    paths()
    asked: list[tuple[bool, ...]] = []

    def spied(real: Any) -> Any:
        def spy(*arguments: Any, **options: Any) -> Any:
            found = real(*arguments, **options)
            asked.append(tuple(gradient is not None for gradient in found))
            return found

        return spy

    monkeypatch.setattr(matmuls, "backward", spied(matmuls.backward))
    everything = mlp_inputs()
    want = results(bilinear_mlp, everything, torch.ones(5, 3, dtype=torch.float64))
    subsets = [s for s in itertools.product([False, True], repeat=5) if any(s)]
    for subset in subsets:
        inputs = [
            None if t is None else t.detach().requires_grad_(need)
            for t, need in zip(everything, subset, strict=True)
        ]
        got = results(bilinear_mlp, inputs, torch.ones(5, 3, dtype=torch.float64))
        x, weight, w_p, bias, b_p = subset
        assert asked[-1] == (x, weight, bias, w_p, b_p)
        expected = [want[0], *(g for g, need in zip(want[1:], subset, strict=True) if need)]
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_no_gradients_means_nothing_saved() -> None:
    inputs = [t.detach() for t in mlp_inputs() if t is not None]
    assert bilinear_mlp(*inputs).grad_fn is None
    with torch.no_grad():
        assert bilinear(*(t.requires_grad_() for t in inputs[:2])).grad_fn is None
    torch.testing.assert_close(bilinear_mlp(*inputs), composed_mlp(*inputs))


def saved_bytes(f: Callable[..., Tensor], inputs: list[Tensor | None]) -> tuple[int, int]:
    """Distinct bytes saved for backward: of all storages, and of those that are no parameter."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = f(*inputs)
    assert out.grad_fn is not None
    weights = {t.untyped_storage().data_ptr() for t in inputs[1:] if t is not None}
    return sum(sizes.values()), sum(n for at, n in sizes.items() if at not in weights)


@pytest.mark.parametrize("device", CPU_AND_GPU)
def test_saved_bytes(device: str) -> None:
    m, d_in, d, d_out = 64, 48, 300, 20
    inputs = mlp_inputs(m, d_in, d, d_out, dtype=torch.float32, device=device)
    layer = [inputs[0], inputs[1], inputs[3]]

    def again(f: Any) -> Any:
        return lambda *arguments: f(*arguments, recompute=True)

    assert saved_bytes(again(bilinear_mlp), inputs)[1] == 4 * m * d_in
    assert saved_bytes(again(bilinear), layer)[1] == 4 * m * d_in
    assert saved_bytes(bilinear_mlp, inputs)[1] in (4 * m * (d_in + 2 * d), 4 * m * d_in)
    assert saved_bytes(bilinear, layer)[1] == 4 * m * (d_in + 2 * d)
    assert saved_bytes(composed_mlp, inputs)[1] == 4 * m * (d_in + 3 * d)


# What torch's composition saves besides x and [L, R], in tensors of d a row: g(L), h, and for relu²
# what is squared.
EAGER_SAVES = {
    "identity": 1, "silu": 2, "gelu": 2, "gelu_tanh": 2, "relu": 2, "sigmoid": 2, "relu2": 3,
}  # fmt: skip


@pytest.mark.parametrize("gate", GATES)
def test_saved_bytes_do_not_depend_on_the_gate(gate: str) -> None:
    """(d_in + 2d) / (d_in + 4d) of what eager SwiGLU saves; x alone with `recompute`."""
    m, d_in, d, d_out = 64, 48, 300, 20
    inputs = mlp_inputs(m, d_in, d, d_out, dtype=torch.float32)

    def plain(*given: Tensor) -> Tensor:
        x, weight, w_p, bias, b_p = given
        return eager.compose(x, weight, bias, w_p, b_p, gate=gate)

    def ours(recompute: bool) -> Callable[..., Tensor]:
        return lambda *given: bilinear_mlp(*given, gate=gate, recompute=recompute)

    assert saved_bytes(plain, inputs)[1] == 4 * m * (d_in + (2 + EAGER_SAVES[gate]) * d)
    assert saved_bytes(ours(False), inputs)[1] == 4 * m * (d_in + 2 * d)
    assert saved_bytes(ours(True), inputs)[1] == 4 * m * d_in


@pytest.mark.parametrize("device", CPU_AND_GPU)
def test_same_bits_every_run(device: str) -> None:
    inputs = mlp_inputs(3000, 33, 400, 9, dtype=torch.float32, device=device)
    upstream = torch.randn(3000, 9, device=device)
    first = results(bilinear_mlp, inputs, upstream)
    for _ in range(3):
        again = results(bilinear_mlp, inputs, upstream)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(
    ("recompute", "gate"), [(True, "identity"), *((False, gate) for gate in GATES)]
)
def test_func_transforms_equal_the_compositions(recompute: bool, gate: str) -> None:
    x, weight, w_p, bias, b_p = (t.detach() for t in mlp_inputs() if t is not None)

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        h = bilinear(x, weight, bias, recompute=recompute, gate=gate)
        return (F.linear(h, w_p) + bilinear_mlp(x, weight, w_p, bias, b_p, gate=gate)).sum()

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        h = eager.compose(x, weight, bias, gate=gate)
        return (F.linear(h, w_p) + eager.compose(x, weight, bias, w_p, b_p, gate=gate)).sum()

    from torch import func

    weights = torch.stack((weight, 2 * weight))
    tangents = (torch.randn_like(x), torch.randn_like(weight))
    for transformed in (
        lambda f: func.grad(f, (0, 1))(x, weight),
        lambda f: func.vmap(func.grad(f), (0, None))(x, weight),
        lambda f: func.vmap(func.grad(f, 1), (None, 0))(x, weights),
        lambda f: func.jvp(f, (x, weight), tangents),
        lambda f: func.hessian(f)(x, weight),
        lambda f: func.jacrev(f, 1)(x, weight),
        lambda f: func.vmap(f)(torch.stack((x, x)), weights),
    ):
        torch.testing.assert_close(transformed(ours), transformed(plain))


def test_forward_mode_without_func() -> None:
    x, weight, bias = (t.detach() for t in layer_inputs() if t is not None)
    tangent = torch.randn_like(x)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, tangent)
        got = forward_ad.unpack_dual(bilinear(dual, weight, bias)).tangent
    want = torch.func.jvp(lambda x: eager.compose(x, weight, bias), (x,), (tangent,))[1]
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    inputs = mlp_inputs()
    upstream = torch.randn(5, 3, dtype=torch.float64)
    want = results(bilinear_mlp, inputs, upstream)
    out = checkpoint(bilinear_mlp, *inputs, use_reentrant=reentrant)
    out.backward(upstream)
    for tensor, gradient in zip(inputs, want[1:], strict=True):
        assert tensor is not None
        torch.testing.assert_close(tensor.grad, gradient)


@pytest.mark.parametrize("device", CPU_AND_GPU)
@pytest.mark.parametrize("gate", ["identity", "silu", "gelu"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_as_linear_does(device: str, dtype: torch.dtype, gate: str) -> None:
    inputs = mlp_inputs(40, 30, 20, 10, dtype=torch.float32, device=device)
    with torch.autocast(device, dtype):
        x, weight, w_p, b, b_p = inputs
        assert x is not None
        assert weight is not None
        got = bilinear_mlp(*inputs, gate=gate)
        want = eager.compose(x, weight, b, w_p, b_p, gate=gate)
        h = bilinear(inputs[0], inputs[1], inputs[3])
        upstream = torch.randn(want.shape, device=device).to(want.dtype)
        gradients = torch.autograd.grad(got, inputs, upstream)
    assert got.dtype == want.dtype == h.dtype == dtype
    torch.testing.assert_close(got, want, rtol=3e-2, atol=3e-2)
    theirs = torch.autograd.grad(want, inputs, upstream)
    for a, b in zip(gradients, theirs, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() <= 2e-2 * b.norm()


def test_autocast_leaves_float64_alone() -> None:
    inputs = mlp_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        out = bilinear_mlp(*inputs)
    assert out.dtype == torch.float64
    torch.testing.assert_close(out, composed_mlp(*inputs))


def test_meta_and_fake_tensors_get_shapes_only() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.device("meta"):
        x, weight = torch.empty(2, 3, 6, requires_grad=True), torch.empty(8, 6)
        w_p = torch.empty(5, 4, requires_grad=True)
    out = bilinear_mlp(x, weight, w_p)
    assert out.shape == (2, 3, 5)
    assert bilinear(x, weight).shape == (2, 3, 4)
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    with FakeTensorMode():
        fake = bilinear_mlp(
            torch.empty(7, 6), torch.empty(8, 6, requires_grad=True), torch.empty(5, 4)
        )
        assert fake.shape == (7, 5)
        assert type(fake).__name__ == "FakeTensor"


@pytest.mark.parametrize("recompute", [False, True])
def test_inference_mode_and_retained_graph(recompute: bool) -> None:
    everything = mlp_inputs()
    for f, inputs in (
        (bilinear, [everything[0], everything[1], everything[3]]),
        (bilinear_mlp, everything),
    ):
        with torch.inference_mode():
            quiet = f(*inputs)
        out = f(*inputs, recompute=recompute)
        torch.testing.assert_close(quiet.clone(), out.detach())
        loss = out.square().sum()
        # Only the last backward through a graph may overwrite what was saved.
        runs = [torch.autograd.grad(loss, inputs, retain_graph=keep) for keep in (1, 1, 0)]
        for again in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


def test_small_calls_take_torchs_composition(paths: Callable[..., None]) -> None:
    paths(compiled=False, small=5 * (6 + 8) + 1)
    inputs = layer_inputs()
    assert type(bilinear(*inputs).grad_fn).__name__ == "MulBackward0"
    assert type(bilinear(*inputs, recompute=True).grad_fn).__name__ == "BilinearFunctionBackward"
    paths(compiled=False, small=5 * (6 + 8))
    assert type(bilinear(*inputs).grad_fn).__name__ == "BilinearFunctionBackward"


def test_weight_may_change_in_place_where_x_needs_no_gradient() -> None:
    x, weight, bias = (t.detach() for t in layer_inputs() if t is not None)
    upstream = torch.randn(5, 4, dtype=torch.float64)
    found = []
    for f in (eager.compose, bilinear):
        parameters = [weight.clone().requires_grad_(), bias.clone().requires_grad_()]
        out = f(x, *parameters)
        with torch.no_grad():
            parameters[0].mul_(3)
        found.append(torch.autograd.grad(out, parameters, upstream))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    assert torch.autograd.gradgradcheck(
        lambda w, b: bilinear(x, w, b), (weight.requires_grad_(), bias)
    )


def test_a_second_derivative_after_a_change_in_place_is_refused(paths: Callable[..., None]) -> None:
    paths(small=0)
    x, weight, bias = (t.detach() for t in layer_inputs() if t is not None)
    weight.requires_grad_()
    out = bilinear(x, weight, bias)
    with torch.no_grad():
        weight.mul_(3)
    with pytest.raises(RuntimeError, match="weight: expected no change in place"):
        torch.autograd.grad(out.sum(), weight, create_graph=True)


@pytest.mark.parametrize("retain", [False, True])
def test_backward_writes_to_nothing_that_hooks_hold(retain: bool) -> None:
    everything = mlp_inputs()
    for f, inputs in ((bilinear, layer_inputs()), (bilinear_mlp, everything)):
        held: list[tuple[Tensor, Tensor]] = []

        def pack(tensor: Tensor, held: list[tuple[Tensor, Tensor]] = held) -> Tensor:
            held.append((tensor, tensor.detach().clone()))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = f(*inputs)
        assert held
        torch.autograd.grad(out.sum(), inputs, retain_graph=retain)
        assert all(torch.equal(tensor, before) for tensor, before in held)
