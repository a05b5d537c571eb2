"""torch.compile, torch.export and tracing take the layer without a graph break."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bilinear.functional import bilinear, bilinear_mlp
from bilinear.layer import eager
from bilinear.layer.modules import BilinearMLP

pytestmark = [
    # torch.compile itself makes a Function object whenever it traces one.
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    # Inductor's own imports script a module.
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
]
BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def _fresh(paths: Callable[..., None]) -> Iterator[None]:
    paths(small=0)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def inputs(m: int, device: str = "cpu") -> list[Tensor]:
    shapes = ((m, 6), (8, 6), (3, 4), (8,), (3,))
    return [torch.randn(s, device=device, dtype=torch.float64).requires_grad_() for s in shapes]


def loss(x: Tensor, weight: Tensor, w_p: Tensor, bias: Tensor, b_p: Tensor) -> Tensor:
    recomputed = bilinear(x, weight, bias, recompute=True) @ w_p.t()
    both = recomputed + bilinear_mlp(x.sin(), weight, w_p, bias, b_p)
    gated = bilinear(x, weight, bias, gate=F.silu) @ w_p.t()
    both = both + gated * bilinear_mlp(x, weight, w_p, bias, b_p, gate="gelu")
    return (both * both).sum()


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_fullgraph_forward_and_backward_equal_eager(backend_name: str, device: str) -> None:
    compiled = torch.compile(loss, fullgraph=True, backend=backend_name)
    given = inputs(7, device)
    want, got = loss(*given), compiled(*given)
    torch.testing.assert_close(got, want)
    for a, b in zip(torch.autograd.grad(got, given), torch.autograd.grad(want, given), strict=True):
        torch.testing.assert_close(a, b)


def test_one_graph_for_every_number_of_rows() -> None:
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    first = inputs(5)
    compiled(*first).backward()
    with torch.compiler.set_stance("fail_on_recompile"):
        for m in (9, 30):
            x = torch.randn(m, 6, dtype=torch.float64, requires_grad=True)
            compiled(x, *first[1:]).backward()
            want = torch.autograd.grad(loss(x, *first[1:]), x)[0]
            torch.testing.assert_close(x.grad, want)


def test_compiled_func_transforms() -> None:
    x, weight, *_ = (t.detach() for t in inputs(4))

    def per_sample(x: Tensor, weight: Tensor) -> Tensor:
        grad = torch.func.grad(lambda x, weight: bilinear(x, weight).sum())
        return torch.func.vmap(grad, (0, None))(x, weight)

    compiled = torch.compile(per_sample, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight), per_sample(x, weight))


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_any_number_of_rows(strict: bool) -> None:
    model = BilinearMLP(6, 4, 3, bias=True, gate=nn.GELU("tanh"))
    rows = {0: torch.export.Dim("rows")}
    with torch.no_grad():
        exported = torch.export.export(
            model, (torch.randn(5, 6),), dynamic_shapes=(rows,), strict=strict
        )
    assert any("bilinear.forward" in str(node.target) for node in exported.graph.nodes)
    x = torch.randn(11, 6)
    torch.testing.assert_close(exported.module()(x), model(x))


def test_make_fx_sees_the_operator() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    given = [t.detach() for t in inputs(5)]
    traced = make_fx(lambda *given: bilinear_mlp(*given))(*given)
    assert any("bilinear.forward" in str(node.target) for node in traced.graph.nodes)
    torch.testing.assert_close(
        traced(*given), eager.compose(given[0], given[1], given[3], given[2], given[4])
    )
