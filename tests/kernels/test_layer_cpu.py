"""The compiled layer against float64 and against torch's composition, its bits, its threads."""

import importlib
import itertools
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bilinear.kernels import layer_cpu
from bilinear.layer.gates import product, product_backward

missing = layer_cpu.unavailable_because(torch.float32, "identity")
pytestmark = pytest.mark.skipif(bool(missing), reason=missing)
ISAS = range(0 if missing else layer_cpu.ISAS.index(layer_cpu.best_isa()) + 1)
NAMES = ("x", "weight", "bias", "w_p", "b_p")
Arguments = dict[str, Tensor | None]
EVERY = (True,) * 5


@pytest.fixture(autouse=True)
def _memory_that_nobody_wrote_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def arguments(
    m: int,
    d_in: int,
    d: int,
    d_out: int | None,
    *,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
    draw: Any = torch.randn,
) -> Arguments:
    shapes = ((m, d_in), (2 * d, d_in), (2 * d,), (d_out or 1, d), (d_out or 1,))
    scales = (1, d_in**-0.5, 1, d**-0.5, 1)
    given = (True, True, bias, bool(d_out), bool(d_out) and bias)
    return {
        name: (draw(shape) * scale).to(dtype) if here else None
        for name, shape, scale, here in zip(NAMES, shapes, scales, given, strict=True)
    }


def composed(a: Arguments, dout: Tensor, gate: str) -> list[Tensor | None]:
    """Out, preact and the gradients by torch's autograd, in the arguments' dtype."""
    leaves = {n: None if t is None else t.detach().requires_grad_() for n, t in a.items()}
    x, weight, bias, w_p, b_p = leaves.values()
    assert x is not None
    assert weight is not None
    preact = F.linear(x, weight, bias)
    h = product(*preact.chunk(2, 1), gate)
    out = h if w_p is None else F.linear(h, w_p, b_p)
    wanted = [t for t in leaves.values() if t is not None]
    found = iter(torch.autograd.grad(out, wanted, dout))
    return [out.detach(), preact.detach(), *(t if t is None else next(found) for t in a.values())]


def compiled(
    a: Arguments, dout: Tensor, gate: str, isa: int | None = None, recompute: bool = False
) -> list[Tensor | None]:
    """The same by the compiled layer."""
    how: dict[str, Any] = {"gate": gate} | ({} if isa is None else {"isa": isa})
    x, weight, bias, w_p, b_p = a.values()
    assert x is not None
    assert weight is not None
    out, preact = layer_cpu.forward(x, weight, bias, w_p, b_p, save_preact=True, **how)
    needs = tuple(t is not None for t in a.values())
    saved = None if recompute else preact
    gradients = layer_cpu.backward(dout, x, weight, bias, w_p, saved, needs, **how)
    return [out, preact, *gradients]


def in_float64(a: Arguments) -> Arguments:
    return {name: None if t is None else t.double() for name, t in a.items()}


def gradient_of(a: Arguments) -> Tensor:
    x, weight, _, w_p, _ = a.values()
    assert x is not None
    assert weight is not None
    width = weight.shape[0] // 2 if w_p is None else w_p.shape[0]
    return torch.randn(x.shape[0], width).to(x.dtype)


def check(a: Arguments, dout: Tensor, gate: str = "identity", **how: Any) -> None:
    """Each result within a few roundings of float64, relative to its size."""
    exact = composed(in_float64(a), dout.double(), gate)
    for mine, theirs, want in zip(
        compiled(a, dout, gate, **how), composed(a, dout, gate), exact, strict=True
    ):
        assert (mine is None) == (want is None)
        if mine is not None and theirs is not None and want is not None:
            assert mine.shape == want.shape
            assert mine.is_contiguous()
            unit = 1e-6 if mine.dtype == torch.float32 else 2**-7
            error = (mine - want).norm()
            # Where terms cancel, torch's own error says how much that costs.
            assert error <= unit * want.norm() + 4 * (theirs - want).norm() + 1e-6


SIZES = (1, 3, 17, 63, 65, 129)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("m", SIZES)
def test_odd_sizes(m: int, isa: int) -> None:
    draw = random.Random()
    for d_in, d in itertools.product(SIZES, SIZES):
        d_out, bias = draw.choice((None, *SIZES)), draw.random() < 0.7
        # Above 0, so that nothing cancels and every error is a share of its number.
        a = arguments(m, d_in, d, d_out, bias=bias, draw=torch.rand)
        check(a, gradient_of(a).abs(), isa=isa, recompute=draw.random() < 0.5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("m", [1, 64, 127, 128, 129])
def test_few_rows_read_whole_panels_where_they_lie(m: int, isa: int) -> None:
    for d_in, d, d_out in ((16, 16, None), (64, 48, 33), (48, 33, 64), (400, 32, None)):
        a = arguments(m, d_in, d, d_out)
        check(a, gradient_of(a), isa=isa)
        # From an odd element on, its rows apart, and not from row to row in memory.
        for x in (torch.randn(m * (d_in + 3) + 5)[5:].view(m, -1)[:, 1 : d_in + 1], a["x"]):
            assert x is not None
            check(a | {"x": x}, gradient_of(a), isa=isa, recompute=x is a["x"])
        turned = torch.randn(d_in, m).t()
        check(a | {"x": turned}, gradient_of(a), isa=isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gate", layer_cpu.GATES)
def test_gates_and_dtypes(gate: str, dtype: torch.dtype, isa: int) -> None:
    if reason := layer_cpu.unavailable_because(dtype, gate):
        pytest.skip(reason)
    for d_out in (None, 33):
        a = arguments(130, 40, 70, d_out, dtype=dtype)
        check(a, gradient_of(a), gate, isa=isa)


@pytest.mark.parametrize("gate", layer_cpu.GATES)
def test_gates_follow_float64_everywhere(gate: str) -> None:
    """L runs over the reals, R is 1, so that h is g(L) and dL is g′(L)."""
    points = torch.cat([torch.linspace(-30, 30, 20001), torch.logspace(-30, 3, 500)])
    left = torch.cat([points, -points[-500:]])[:, None]
    x = torch.cat([left, torch.ones_like(left)], 1)
    a: Arguments = dict.fromkeys(NAMES) | {"x": x, "weight": torch.eye(2)}
    dout = torch.ones_like(left)
    mine = compiled(a, dout, gate)
    exact = composed(in_float64(a), dout.double(), gate)
    for index in (0, 2):
        got, want = mine[index], exact[index]
        assert got is not None
        assert want is not None
        allowed = 3e-7 * (1 + want.abs()) if index else 3e-7 * want.abs() + 2e-8 * left.abs()
        assert ((got - want).abs() <= allowed + 1e-30).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("gate", layer_cpu.GATES)
def test_nan_and_inf_are_torchs(gate: str, isa: int) -> None:
    values = torch.tensor([float("nan"), float("inf"), float("-inf"), 0.0])
    for bad, where in itertools.product(values, ("x", "weight", "bias", "w_p", "dout")):
        a = arguments(20, 18, 19, 21)
        # Far out torch's gelu is 0 where ours is 1e-9, and Inf times 0 is NaN.
        a["weight"], a["bias"] = (t if t is None else t / 3 for t in (a["weight"], a["bias"]))
        dout = gradient_of(a)
        tensor = dout if where == "dout" else a[where]
        assert tensor is not None
        tensor.view(-1)[tensor.numel() // 2] = bad
        for mine, theirs in zip(compiled(a, dout, gate, isa), composed(a, dout, gate), strict=True):
            assert mine is not None
            assert theirs is not None
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("save_preact", [False, True])
def test_gradients_asked_for_are_the_ones_formed(save_preact: bool) -> None:
    a = arguments(70, 9, 20, 5)
    x, weight, bias, w_p, b_p = a.values()
    assert x is not None
    assert weight is not None
    dout = gradient_of(a)
    _, preact = layer_cpu.forward(x, weight, bias, w_p, b_p, gate="silu", save_preact=save_preact)
    assert (preact is not None) == save_preact
    every = layer_cpu.backward(dout, x, weight, bias, w_p, preact, EVERY, gate="silu")
    for needs in itertools.product([False, True], repeat=5):
        some = layer_cpu.backward(dout, x, weight, bias, w_p, preact, needs, gate="silu")
        assert tuple(g is not None for g in some) == needs
        for mine, want in zip(some, every, strict=True):
            assert mine is None or (want is not None and torch.equal(mine, want))


@pytest.mark.parametrize("isa", ISAS)
def test_outputs_larger_than_the_caches(isa: int) -> None:
    a = arguments(11000, 4, 256, None)
    check(a, gradient_of(a), isa=isa)


def test_no_rows() -> None:
    a = arguments(0, 5, 3, 4)
    out, _, dx, *sums = compiled(a, torch.randn(0, 4), "identity")
    assert out is not None
    assert out.shape == (0, 4)
    assert dx is not None
    assert dx.shape == (0, 5)
    assert all(total is not None and not total.any() for total in sums)


@given(
    sizes=st.tuples(*[st.integers(1, 40)] * 3, st.integers(0, 40)),
    gate=st.sampled_from(layer_cpu.GATES),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    offset=st.integers(0, 17),
    steps=st.tuples(*[st.integers(0, 3)] * 4),
    turned=st.tuples(st.booleans(), st.booleans()),
    isa=st.sampled_from(list(ISAS) or [0]),
)
@settings(max_examples=150, deadline=None)
def test_any_shape_at_any_stride(
    sizes: tuple[int, ...],
    gate: str,
    dtype: torch.dtype,
    offset: int,
    steps: tuple[int, ...],
    turned: tuple[bool, bool],
    isa: int,
) -> None:
    m, d_in, d, d_out = sizes
    # Above 0, so that nothing cancels and every error is a share of its number.
    a = arguments(m, d_in, d, d_out or None, dtype=dtype, draw=torch.rand)
    dout = gradient_of(a)

    def strided(tensor: Tensor, row: int, column: int, is_turned: bool) -> Tensor:
        """The same shape somewhere in memory, at strides of its own; 0 repeats."""
        rows, columns = tensor.shape
        strides = (row * columns * max(column, 1), column)
        if is_turned:
            strides = (row, column * rows * max(row, 1))
        size = offset + sum((n - 1) * s for n, s in zip(tensor.shape, strides, strict=True)) + 1
        memory = torch.rand(size).to(dtype)
        return memory.as_strided(tensor.shape, strides, offset)

    assert a["x"] is not None
    a["x"] = strided(a["x"], *steps[:2], turned[0])
    for name in ("weight", "bias", "w_p", "b_p"):
        tensor = a[name]
        if tensor is not None:  # contiguous, not aligned
            memory = torch.empty(tensor.numel() + offset, dtype=dtype)
            a[name] = memory[offset:].view(tensor.shape).copy_(tensor)
    check(a, strided(dout, *steps[2:], turned[1]), gate, isa=isa)


def test_a_lazy_minus_sign_counts() -> None:
    z = torch.randn(9, 6, dtype=torch.complex64)
    x = z.conj().imag
    assert x.is_neg()
    a = arguments(9, 6, 4, None)
    a["x"] = x
    check(a, gradient_of(a))


SHAPES = [
    (3000, 33, 65, 9), (700, 130, 400, 200),
    # So few rows that threads divide the units: fewer panels of them than threads, and more.
    (64, 128, 64, None), (256, 40, 96, 33), (101, 300, 80, 50), (5, 400, 704, 300),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_bits_on_any_number_of_threads(shape: tuple[int, int, int, int | None]) -> None:
    a = arguments(*shape)
    dout, threads = gradient_of(a), torch.get_num_threads()
    found = []
    try:
        for n in (1, 2, 3, 7, 1, 2):
            torch.set_num_threads(n)
            found.append(compiled(a, dout, "silu"))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert one is two is None or (one is not None and torch.equal(one, two))


def test_concurrent_calls_of_all_sizes_share_no_scratch() -> None:
    """Kept scratch may be too small, or larger than needed, and one call at a time has it."""
    given = [arguments(m, 96, d, None) for m, d in ((64, 64), (300, 700), (2000, 80), (5, 1024))]
    calls = [(a, gradient_of(a)) for a in given] * 6
    want = [compiled(*call, "silu") for call in calls[:4]] * 6
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda call: compiled(*call, "silu"), calls))
    for one, two in zip(found, want, strict=True):
        for mine, alone in zip(one, two, strict=True):
            assert mine is alone is None or (mine is not None and torch.equal(mine, alone))


@pytest.mark.skipif(len(ISAS) < 3, reason="needs a processor with AVX-512")
@pytest.mark.parametrize("gate", layer_cpu.GATES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_bits_on_avx2_and_avx512(
    shape: tuple[int, int, int, int | None], gate: str
) -> None:
    a = arguments(*shape)
    dout = gradient_of(a)
    for one, two in zip(compiled(a, dout, gate, 1), compiled(a, dout, gate, 2), strict=True):
        assert one is two is None or (one is not None and torch.equal(one, two))


def relative_errors(
    shape: tuple[int, int, int, int | None], dtype: torch.dtype, gate: str, draws: int
) -> Tensor:
    """Mean squared errors of ours and of eager's, one row for each result."""
    total = torch.zeros(7, 2, dtype=torch.float64)
    for _ in range(draws):
        a = arguments(*shape, dtype=dtype)
        dout = gradient_of(a)
        exact = composed(in_float64(a), dout.double(), gate)
        for way, run in enumerate((compiled, composed)):
            for i, (got, want) in enumerate(zip(run(a, dout, gate), exact, strict=True)):
                if got is not None and want is not None:
                    total[i, way] += ((got - want).norm() / want.norm()) ** 2
    return (total / draws).sqrt()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gate", ["identity", "silu", "gelu"])
@pytest.mark.parametrize("shape", [(300, 96, 100, None), (2000, 64, 80, 48), (700, 512, 64, 64)])
def test_errors_are_no_larger_than_eagers(
    shape: tuple[int, int, int, int | None], gate: str, dtype: torch.dtype
) -> None:
    found = relative_errors(shape, dtype, gate, draws=16)
    ours, eagers = found.unbind(1)
    assert (ours <= 1.1 * eagers + 1e-9).all(), found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_works_alone_and_gives_the_same_bits() -> None:
    a = arguments(2000, 64, 80, 48)
    dout, threads = gradient_of(a), torch.get_num_threads()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(False)  # torch's own fill would wait for threads for ever
    try:
        want = compiled(a, dout, "identity")  # its threads wait for more work meanwhile
        child = os.fork()
        if child == 0:
            try:
                found = compiled(a, dout, "identity")
                torch.set_num_threads(1)
                same = all(
                    one is not None and two is not None and torch.equal(one, two)
                    for one, two in zip(found, want, strict=True)
                )
                os._exit(0 if same and not layer_cpu.shares_work() else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(threads)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert layer_cpu.unavailable_because(torch.bfloat16, "silu") == ""
    assert "no float64" in layer_cpu.unavailable_because(torch.float64, "silu")
    assert "no gate swish" in layer_cpu.unavailable_because(torch.float32, "swish")
    monkeypatch.setattr(layer_cpu, "_compiled", None)
    for error, said in ((ModuleNotFoundError(), "is not built"), (ImportError("DLPack"), "DLPack")):
        monkeypatch.setattr(importlib, "import_module", Mock(side_effect=error))
        monkeypatch.setattr(layer_cpu, "_missing", layer_cpu._import()[1])
        assert said in layer_cpu.unavailable_because(torch.float32, "identity")


def test_the_entry_points_refuse_what_cannot_be() -> None:
    entry = layer_cpu._compiled
    x, weight, b_p = torch.randn(5, 7), torch.randn(6, 7), torch.randn(4)
    with pytest.raises(TypeError, match="expected 8 arguments, got 3"):
        entry.forward(0, 0, 0)
    with pytest.raises(ValueError, match="cannot be"):
        entry.forward(99, 0, x, weight, None, None, None, False)
    with pytest.raises(ValueError, match="cannot be"):
        entry.forward(0, 0, x.double(), weight, None, None, None, False)
    for nothing in (torch.randn(0, 7), torch.randn(6, 0)):
        with pytest.raises(ValueError, match="cannot be"):
            entry.forward(0, 0, x[:, : nothing.shape[1]], nothing, None, None, None, False)
    with pytest.raises(ValueError, match="cannot be"):
        entry.forward(0, 0, x, weight, None, torch.randn(0, 3), None, False)
    with pytest.raises(ValueError, match=r"weight: expected \(6, 7\) of x's dtype"):
        entry.forward(0, 0, x, weight.bfloat16(), None, None, None, False)
    with pytest.raises(ValueError, match=r"weight: expected \(6, 9\)"):
        entry.forward(0, 0, torch.randn(5, 9), weight, None, None, None, False)
    with pytest.raises(ValueError, match=r"b_p: expected \(2, 1\)"):
        entry.forward(0, 0, x, weight, None, torch.randn(2, 3), b_p, False)
    with pytest.raises(ValueError, match=r"dout: expected \(5, 3\)"):
        entry.backward(0, 0, x, weight, None, None, None, x, [True] * 5)
    with pytest.raises(TypeError):
        entry.backward(*["no"] * 9)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("gate", layer_cpu.GATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_lies_between_matmuls(isa: int, gate: str, dtype: torch.dtype) -> None:
    for m, d in ((0, 5), (1, 1), (7, 16), (33, 77), (129, 512)):
        preact, dh = 3 * torch.randn(m, 2 * d).to(dtype), torch.randn(m, d).to(dtype)
        before = preact.clone()
        left, right = preact.double().chunk(2, 1)
        h = product(left, right, gate)
        dpreact = product_backward(dh.double(), left, right, gate)
        close: dict[str, Any] = {"rtol": 5e-3 if dtype == torch.bfloat16 else 2e-6, "atol": 2e-6}
        torch.use_deterministic_algorithms(True)  # unwritten memory reads as NaN
        try:
            halves = preact.chunk(2, 1)
            apart = [half.clone(memory_format=torch.contiguous_format) for half in halves]
            turned = [half.t().contiguous().t() for half in halves]  # rows are not contiguous
            got_h = layer_cpu.product_forward(*halves, gate=gate, isa=isa)
            got = layer_cpu.product_backward(dh, *halves, gate=gate, isa=isa)
            across = dh.t().contiguous().t()
            again = layer_cpu.product_backward(across, *turned, gate=gate, isa=isa)
            into, third = dh.clone(), dh.clone()
            fourth = layer_cpu.product_backward(into, *apart, gate=gate, into_dh="h", isa=isa)
            dright = layer_cpu.product_backward(third, *apart, gate=gate, into_dh="dleft", isa=isa)
            own = layer_cpu.product_forward(*apart, gate=gate, into_left=True, isa=isa)
        finally:
            torch.use_deterministic_algorithms(False)
        torch.testing.assert_close(got_h.double(), h, **close)
        torch.testing.assert_close(got.double(), dpreact, **close)
        assert torch.equal(into, got_h)
        assert torch.equal(got, again)
        assert torch.equal(got, fourth)
        assert torch.equal(got, torch.cat((third, dright), 1))
        assert own is apart[0]
        assert torch.equal(own, got_h)
        assert torch.equal(preact, before)


def test_special_numbers_between_matmuls_are_torchs() -> None:
    special = [0.0, -0.0, 1.0, -1.0, torch.inf, -torch.inf, torch.nan, 3e38, -3e38, 1e-42]
    left, right = torch.cartesian_prod(torch.tensor(special), torch.tensor(special)).unbind(1)
    for dtype, dh in itertools.product((torch.float32, torch.bfloat16), special[:7]):
        preact = torch.cat((left, right))[None].to(dtype)
        rounded = preact.chunk(2, 1)
        given = torch.full_like(rounded[0], dh)
        got = layer_cpu.product_backward(given, *rounded, gate="identity")
        want = product_backward(given, *rounded, "identity")
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
        h = layer_cpu.product_forward(*rounded, gate="identity")
        torch.testing.assert_close(h, rounded[0] * rounded[1], rtol=0, atol=0, equal_nan=True)


def test_bad_input_between_matmuls_is_refused() -> None:
    left, right, dh = torch.randn(4, 3), torch.randn(4, 3), torch.randn(4, 3)
    for bad in (torch.randn(6), left.double(), left.half()):
        with pytest.raises(ValueError, match="cannot be"):
            layer_cpu.product_forward(bad, right, gate="identity")
    for bad in (dh.double(), dh.bfloat16(), torch.randn(4, 2), torch.randn(3, 3)):
        with pytest.raises(ValueError, match="right: expected"):
            layer_cpu.product_forward(left, bad, gate="identity")
        with pytest.raises(ValueError, match="dh: expected"):
            layer_cpu.product_backward(bad, left, right, gate="identity")
    turned = dh.t().contiguous().t()
    with pytest.raises(ValueError, match="dh: expected contiguous memory"):
        layer_cpu.product_backward(turned, left, right, gate="silu", into_dh="h")
    with pytest.raises(ValueError, match="left: expected contiguous memory"):
        layer_cpu.product_forward(turned, right, gate="silu", into_left=True)


def test_the_same_bits_between_matmuls_on_any_number_of_threads() -> None:
    halves = torch.randn(900, 200).chunk(2, 1)
    dh, threads = torch.randn(900, 100), torch.get_num_threads()
    found = []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            found.append(layer_cpu.product_backward(dh, *halves, gate="silu"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
