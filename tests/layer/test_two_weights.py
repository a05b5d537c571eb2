"""The MLP of two separate weights against the composition, its gradients, and what it saves."""

import itertools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bilinear import explain, fuse
from bilinear.functional import bilinear_mlp
from bilinear.kernels import layer_cpu
from bilinear.layer.context import is_undisturbed
from bilinear.layer.gates import GATES
from bilinear.layer.two_weights import gated_mlp

missing = layer_cpu.unavailable_because(torch.bfloat16, "silu")
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
G: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "relu2": lambda x: F.relu(x) ** 2,
}


@pytest.fixture(autouse=True)
def _poison(paths: Callable[..., None]) -> Iterator[None]:
    """Runs the Function for any number of rows; unwritten memory reads as NaN."""
    paths(few=0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def arguments(
    *leading: int, bias: bool = True, dtype: torch.dtype = torch.float64
) -> list[Tensor | None]:
    """x, w_l, w_r, b_l, b_r, w_p, b_p, all requiring gradients."""
    d_in, d, d_out = 6, 5, 4
    shapes = [(*leading, d_in), (d, d_in), (d, d_in), (d,), (d,), (d_out, d), (d_out,)]
    return [
        None if i in (3, 4, 6) and not bias else torch.randn(s, dtype=dtype).requires_grad_()
        for i, s in enumerate(shapes)
    ]


def ours(*given: Tensor | None, gate: str = "silu", recompute: bool = False) -> Tensor:
    x, w_l, w_r, b_l, b_r, w_p, b_p = given
    assert x is not None
    assert w_l is not None
    assert w_r is not None
    assert w_p is not None
    return gated_mlp(x, w_l, b_l, w_r, b_r, w_p, b_p, recompute, gate, is_undisturbed())


def plain(*given: Tensor | None, gate: str = "silu") -> Tensor:
    x, w_l, w_r, b_l, b_r, w_p, b_p = given
    return F.linear(G[gate](F.linear(x, w_l, b_l)) * F.linear(x, w_r, b_r), w_p, b_p)


def gradients(out: Tensor, given: list[Tensor | None], dout: Tensor) -> list[Tensor]:
    wanted = [t for t in given if t is not None and t.requires_grad]
    return [out, *torch.autograd.grad(out, wanted, dout)]


def assert_close(a: Tensor, b: Tensor) -> None:
    """In float32 to 1e-4 of the largest: single elements may be small differences."""
    if a.dtype == torch.float64 or b.numel() == 0:
        torch.testing.assert_close(a, b)
    else:
        largest = float(b.detach().abs().max())
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * max(largest, 1e-2))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("leading", [(), (7,), (0,), (2, 3)])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("dtype", "copied"), [(torch.float64, 0), (torch.float32, 0), (torch.float32, math.inf)]
)
def test_it_is_the_composition(
    gate: str,
    bias: bool,
    leading: tuple[int, ...],
    recompute: bool,
    dtype: torch.dtype,
    copied: float,
    paths: Callable[..., None],
) -> None:
    """Float32 calls run in the compiled layer, as those of many rows, and by one pass between."""
    paths(few=0, copied=copied)
    given = arguments(*leading, bias=bias, dtype=dtype)
    want = plain(*given, gate=gate)
    dout = torch.randn_like(want)
    got = ours(*given, gate=gate, recompute=recompute)
    assert type(got.grad_fn).__name__ == "TwoWeightsBackward" or 0 in leading
    before = [None if t is None else t.detach().clone() for t in given]
    for a, b in zip(gradients(got, given, dout), gradients(want, given, dout), strict=True):
        assert_close(a, b)
    with torch.no_grad():
        assert_close(ours(*given, gate=gate), want)
    assert all(a is None or torch.equal(a, b) for a, b in zip(given, before, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_nobody_asked_for(dtype: torch.dtype, paths: Callable[..., None]) -> None:
    paths(few=0, copied=0)
    everything = arguments(5, dtype=dtype)
    dout = torch.randn(5, 4, dtype=dtype)
    for subset in itertools.product([False, True], repeat=7):
        given = [
            None if t is None else t.detach().requires_grad_(need)
            for t, need in zip(everything, subset, strict=True)
        ]
        if any(subset):
            got, want = (gradients(f(*given), given, dout) for f in (ours, plain))
            for a, b in zip(got, want, strict=True):
                assert_close(a, b)


@pytest.mark.parametrize("gate", GATES)
def test_second_derivatives_and_transforms(gate: str) -> None:
    given = arguments(3)
    present = tuple(t for t in given if t is not None)
    assert torch.autograd.gradcheck(
        lambda *a: ours(*a, gate=gate), present, check_forward_ad=True, check_batched_grad=True
    )
    assert torch.autograd.gradgradcheck(lambda *a: ours(*a, gate=gate), present)
    x, *rest = (t.detach() for t in present)
    for transformed in (
        lambda f: torch.func.vmap(torch.func.grad(lambda x: f(x, *rest, gate=gate).sum()))(x),
        lambda f: torch.func.hessian(lambda x: f(x, *rest, gate=gate).sum())(x),
    ):
        torch.testing.assert_close(transformed(ours), transformed(plain))


@pytest.mark.parametrize("copied", [0, math.inf])
@pytest.mark.parametrize("recompute", [False, True])
def test_what_is_saved(recompute: bool, copied: float, paths: Callable[..., None]) -> None:
    """x, L and R; x alone with `recompute`; no packed copy of the weights."""
    paths(few=0, copied=copied)
    given = arguments(64, dtype=torch.float32)
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = ours(*given, recompute=recompute)
    assert out.requires_grad
    parameters = {t.untyped_storage().data_ptr() for t in given[1:] if t is not None}
    saved = sum(size for at, size in sizes.items() if at not in parameters)
    assert saved == 4 * 64 * (6 + (0 if recompute else 2 * 5))


def test_autocast_and_half_precision() -> None:
    given = arguments(40, dtype=torch.float32)
    dout = torch.randn(40, 4)
    with torch.autocast("cpu", torch.bfloat16):
        got, want = (gradients(f(*given), given, dout.bfloat16()) for f in (ours, plain))
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        assert (a - b).norm() <= 2e-2 * b.norm()
    halves = [None if t is None else t.detach().bfloat16().requires_grad_() for t in given]
    wide = [None if t is None else t.detach().double().requires_grad_() for t in halves]
    exact = gradients(plain(*wide), wide, dout.bfloat16().double())
    got, want = (gradients(f(*halves), halves, dout.bfloat16()) for f in (ours, plain))
    for a, b, c in zip(got, want, exact, strict=True):
        spacing = torch.finfo(torch.bfloat16).eps * c.norm()
        assert (a.double() - c).norm() <= 1.1 * (b.double() - c).norm() + 0.5 * spacing


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_retained_graph_gives_the_same_bits(
    dtype: torch.dtype, paths: Callable[..., None]
) -> None:
    paths(few=0, copied=0)
    given = arguments(9, dtype=dtype)
    loss = ours(*given).square().sum()
    first, second = (torch.autograd.grad(loss, given, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class GatedMLP(nn.Module):
    def __init__(self, d_in: int = 6, d: int = 5) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(d_in, d), nn.Linear(d_in, d)
        self.down_proj, self.act_fn = nn.Linear(d, d_in), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def test_explain_says_which_way_the_weights_are_taken(paths: Callable[..., None]) -> None:
    model = GatedMLP()
    fuse(model, strict=True)
    told = explain(model).choices
    assert [choice.implementation for choice in told] == ["native", "native"]
    assert all("a copy of both that is not kept" in choice.reason for choice in told)
    paths(few=0, compiled=False)
    told = explain(model).choices
    assert [choice.implementation for choice in told] == ["matmuls", "matmuls"]
    assert all("W_l and W_r take a matmul each" in choice.reason for choice in told)
    assert type(model(torch.randn(3, 6)).grad_fn).__name__ == "TwoWeightsBackward"
    told = explain(model, compiled=True).choices
    assert all("packed at every call, a copy of both" in choice.reason for choice in told)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_kernels_take_the_weights_as_the_traffic_says(
    paths: Callable[..., None], gate: str, bias: bool, recompute: bool
) -> None:
    """Two rows: the copy moves more than the kernels save. Many: less, so they are packed."""
    paths(few=0, interpreted=True)
    for rows, name in ((2, "TwoWeightsBackward"), (7, "BilinearFunctionBackward")):
        given = arguments(rows, bias=bias)
        want = plain(*given, gate=gate)
        got = ours(*given, gate=gate, recompute=recompute)
        assert type(got.grad_fn).__name__ == name
        dout = torch.randn_like(want)
        for a, b in zip(gradients(got, given, dout), gradients(want, given, dout), strict=True):
            torch.testing.assert_close(a, b)
    model = GatedMLP()
    fuse(model, strict=True)
    told = {rows: str(explain(model, rows=rows)) for rows in (2, 64)}
    assert "a matmul each: the copy moves 0.00048 MB, and would save 0.000432 MB" in told[2]
    assert "packed at every call: the copy moves 0.00048 MB, and saves 0.0138 MB" in told[64]
    assert "triton pointwise" in told[2]


def test_few_rows_run_torchs_own_operations(paths: Callable[..., None]) -> None:
    paths()
    model = GatedMLP()
    x = torch.randn(3, 6, requires_grad=True)
    want = model(x)
    fuse(model, strict=True)
    got = model(x)
    assert torch.equal(got, want)
    assert type(got.grad_fn).__name__ == "AddmmBackward0"
    assert "one by one: h has at most" in str(explain(model, rows=3))
    assert type(model(torch.randn(20_000, 6)).grad_fn).__name__ == "TwoWeightsBackward"
    assert "packed each way" in str(explain(model, rows=20_000))
    fused = GatedMLP()
    fuse(fused, recompute=True, strict=True)
    assert type(fused(x).grad_fn).__name__ == "TwoWeightsBackward"


def test_many_rows_run_in_the_compiled_layer(paths: Callable[..., None]) -> None:
    """The same bits as with packed weights; a differentiated backward runs torch's operations."""
    paths(few=0, copied=0)
    given = arguments(3, 4, dtype=torch.float32)
    x, w_l, w_r, b_l, b_r, w_p, b_p = given
    packed, bias = torch.cat((w_l, w_r)), torch.cat((b_l, b_r))  # type: ignore[arg-type]
    want = bilinear_mlp(x, packed, w_p, bias, b_p, gate="silu")  # type: ignore[arg-type]
    dout = torch.randn_like(want)
    got = ours(*given)
    for a, b in zip(gradients(got, given, dout), gradients(want, given, dout), strict=True):
        assert torch.equal(a, b)
    both = [torch.autograd.grad(f(*given).sum(), given, create_graph=True) for f in (ours, plain)]
    for a, b in zip(*both, strict=True):
        assert_close(a, b)


@pytest.mark.skipif(bool(missing), reason=missing)
@pytest.mark.parametrize(
    ("processor", "rows", "dtype", "is_compiled"),
    [
        ("avx2", 16, torch.bfloat16, True),
        ("avx2", 4, torch.bfloat16, False),
        ("avx2", 16, torch.float32, False),
        ("avx512_fp16", 16, torch.bfloat16, False),
        ("baseline", 16, torch.bfloat16, False),
    ],
)
def test_some_rows_of_16_bits_where_the_processor_has_no_instructions_for_them(
    processor: str,
    rows: int,
    dtype: torch.dtype,
    is_compiled: bool,
    paths: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths()
    monkeypatch.setattr(layer_cpu, "processor", lambda: processor)
    model = GatedMLP(64, 64).to(dtype)
    x = torch.randn(rows, 64).to(dtype)
    want = model(x)
    fuse(model, strict=True)
    out = model(x)
    assert (type(out.grad_fn).__name__ == "TwoWeightsBackward") == is_compiled
    how = "packed each way" if is_compiled else "one by one"
    assert how in str(explain(model, rows=rows))
    torch.testing.assert_close(out, want, rtol=0.05, atol=0.02)
    with torch.no_grad():
        assert torch.equal(model(x), out)


@pytest.mark.parametrize("copied", [0, math.inf])
def test_weights_may_change_in_place_where_x_needs_no_gradient(
    copied: float, paths: Callable[..., None]
) -> None:
    """As under torch's own autograd; a second derivative, which needs them, is refused then."""
    paths(few=0, copied=copied)
    found = []
    everything = [t.detach() for t in arguments(9, dtype=torch.float32) if t is not None]
    for f in (ours, plain, ours):
        given = [t.clone().requires_grad_(i > 0) for i, t in enumerate(everything)]
        out = f(*given).square().sum()
        with torch.no_grad():
            given[1].mul_(3)
            given[2].mul_(3)
        if len(found) < 2:
            found.append(torch.autograd.grad(out, given[1:]))
        else:
            with pytest.raises(RuntimeError, match="weight: expected no change in place"):
                torch.autograd.grad(out, given[1:], create_graph=True)
    for a, b in zip(*found, strict=True):
        assert_close(a, b)
