"""The layer's Function on the Triton kernels themselves, on the CPU by Triton's interpreter.

Not collected by name: `test_triton_kernels.py` runs it in a process of its own, since Triton
reads TRITON_INTERPRET once, when a kernel is decorated.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_calls_like_earlier_ones import *  # noqa: F403
from torch import Tensor

from bench.studies import host_path
from bilinear import Bilinear, explain
from bilinear.functional import bilinear, bilinear_mlp
from bilinear.kernels import dispatch
from bilinear.kernels.launch import recording
from bilinear.layer import custom_ops, eager, select, triton_kernels
from bilinear.layer.gates import GATES

# Triton's interpreter reads one-element arrays in a way that NumPy is about to stop taking.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")
PATHS = ["mlp", "dual", "pointwise"]


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Runs each kernel that the dispatch table can name, whatever it names at these sizes."""
    wanted: str = request.param

    def choose(op: str, *_: Any) -> dispatch.Detail:
        alone = op.startswith("bilinear") and wanted == "mlp"
        return dispatch.Detail("dual" if alone else wanted, None, "told so by a test")

    monkeypatch.setattr(dispatch, "choose", choose)
    select._chosen.clear()
    triton_kernels._known_detail.cache_clear()
    torch.use_deterministic_algorithms(True)  # unwritten memory reads as NaN
    yield wanted
    torch.use_deterministic_algorithms(False)


def composed_mlp(
    x: Tensor, weight: Tensor, w_p: Tensor, bias: Tensor | None = None, b_p: Tensor | None = None
) -> Tensor:
    """`eager.compose` with the arguments in `bilinear_mlp`'s order."""
    return eager.compose(x, weight, bias, w_p, b_p)


def inputs(m: int, d_in: int, d: int, d_out: int, bias: bool) -> list[Tensor | None]:
    shapes = ((m, d_in), (2 * d, d_in), (d_out, d), (2 * d,), (d_out,))
    return [
        None if len(s) == 1 and not bias else torch.randn(s, dtype=torch.float64).requires_grad_()
        for s in shapes
    ]


@pytest.mark.parametrize(
    ("recompute", "gate"),
    [(False, "identity"), (True, "identity"), *((i % 2 == 0, g) for i, g in enumerate(GATES) if i)],
)
def test_gradcheck_goes_through_the_kernels(
    path: str, recompute: bool, gate: str, launched: set[str]
) -> None:
    given = inputs(3, 4, 2, 3, True)

    def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return bilinear(x, weight, bias, recompute=recompute, gate=gate)

    def whole(*given: Tensor) -> Tensor:
        return bilinear_mlp(*given, recompute=recompute, gate=gate)

    arguments = (given[0], given[1], given[3])
    assert torch.autograd.gradcheck(layer, arguments, fast_mode=True)
    assert torch.autograd.gradcheck(whole, tuple(given), fast_mode=True)
    if gate == "identity":  # second derivatives always run eager's operations
        assert torch.autograd.gradgradcheck(whole, tuple(given), fast_mode=True)
    forward, backward = {
        "mlp": ("mlp_kernel", "mlp_backward_kernel"),
        "dual": ("dual_kernel", "dual_kernel backward" if recompute else "dual_weight_kernel"),
        "pointwise": ("product_kernel", "product_kernel backward"),
    }[path]
    assert {forward, backward} <= launched


@pytest.mark.parametrize(
    ("m", "d_in", "d", "d_out"), [(17, 3, 1, 1), (65, 17, 33, 5), (1, 1, 3, 2)]
)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_equal_to_the_composition(
    path: str, m: int, d_in: int, d: int, d_out: int, bias: bool, recompute: bool
) -> None:
    given = inputs(m, d_in, d, d_out, bias)
    wanted = [tensor for tensor in given if tensor is not None]
    upstream = torch.randn(m, d_out, dtype=torch.float64)
    got, want = bilinear_mlp(*given, recompute=recompute), composed_mlp(*given)
    torch.testing.assert_close(got, want)
    for a, b in zip(
        torch.autograd.grad(got, wanted, upstream),
        torch.autograd.grad(want, wanted, upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_subset_of_gradients(path: str) -> None:
    given = inputs(9, 5, 3, 4, True)
    want = torch.autograd.grad(composed_mlp(*given).sum(), given)
    for wanted in ([0], [1], [2], [3], [4], [0, 3], [1, 2]):
        some = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(given)]  # type: ignore[union-attr]
        got = torch.autograd.grad(bilinear_mlp(*some).sum(), [some[i] for i in wanted])
        for i, gradient in zip(wanted, got, strict=True):
            torch.testing.assert_close(gradient, want[i])


def test_no_rows(path: str) -> None:
    given = inputs(0, 5, 3, 4, True)
    gradients = torch.autograd.grad(bilinear_mlp(*given).sum(), given)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)
    assert bilinear(given[0], given[1]).shape == (0, 3)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_opcheck_on_the_kernels(path: str) -> None:
    x, weight, w_p, b, b_p = (t.detach() for t in inputs(5, 6, 4, 3, True) if t is not None)
    forward, backward, gate = custom_ops.forward, custom_ops.backward, "identity"
    dh, dout, preact = (
        torch.randn(5, 4).double(),
        torch.randn(5, 3).double(),
        torch.randn(5, 8).double(),
    )
    checks = ("test_schema", "test_faketensor")
    for op, arguments in (
        (forward, (x, weight, b, None, None, False, gate)),
        (forward, (x, weight, b, None, None, True, gate)),
        (backward, (dh, x, weight, b, None, preact, [True] * 3 + [False] * 2, gate)),
        (backward, (dh, x, weight, b, None, None, [True] * 3 + [False] * 2, gate)),
        (forward, (x, weight, b, w_p, b_p, False, gate)),
        (forward, (x, weight, b, w_p, b_p, True, gate)),
        (backward, (dout, x, weight, b, w_p, preact, [True] * 5, gate)),
        (backward, (dout, x, weight, b, w_p, None, [True] * 5, gate)),
    ):
        torch.library.opcheck(op, arguments, test_utils=checks)


def test_the_table_decides_and_explain_tells() -> None:
    layer = Bilinear(6, 4)
    want = dispatch.choose("bilinear_forward", 64, 6, 4, None, torch.float32, (9, 0), "ieee")
    told = explain(layer, rows=64).choices[0]
    assert told.implementation == "triton"
    assert (told.kernel, told.config, told.reason) == want
    x = torch.randn(64, 6)
    torch.testing.assert_close(layer(x), eager.compose(x, layer.weight))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_mlp_saves_what_the_table_says(path: str) -> None:
    given = inputs(5, 6, 4, 3, True)
    compiled = torch.compile(bilinear_mlp, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(*given).sum(), given)
    want = torch.autograd.grad(composed_mlp(*given).sum(), given)
    torch.testing.assert_close(got, want)
    torch.compiler.reset()


def test_saved_on_the_one_kernel_path(path: str) -> None:
    saved: set[int] = set()
    given = inputs(30, 6, 4, 3, True)

    def pack(tensor: Tensor) -> Tensor:
        saved.add(tensor.shape[1] if tensor.dim() == 2 and tensor.shape[0] == 30 else 0)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        bilinear_mlp(*given)
    assert saved - {0} == ({6} if path == "mlp" else {6, 8})


def test_python_beside_the_launches_is_bounded() -> None:
    """Counts Python calls beside eager's, which are the same on any machine, unlike times."""
    most = {"inference": 11, "forward": 13, "forward and backward": 30}
    with recording(lambda _: None):
        for size in host_path.SIZES:
            _, runs = host_path.ways(size)
            for direction, (theirs, ours) in runs.items():
                calls = host_path.python_calls(ours) - host_path.python_calls(theirs)
                assert calls <= most[direction], (size, direction)
