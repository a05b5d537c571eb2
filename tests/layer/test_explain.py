"""`explain` names the implementation that runs: real calls are made and compared with it."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bilinear import Bilinear, BilinearMLP, explain, fuse, reference
from bilinear.functional import bilinear, bilinear_mlp
from bilinear.kernels import dispatch, layer_cpu
from bilinear.layer import eager, matmuls, native, triton_kernels

pytestmark = [
    # Triton's interpreter reads one-element arrays in a way that NumPy is about to stop taking.
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
    # torch.compile itself makes a Function object whenever it traces one.
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]
SMALL = 40 * (6 + 2 * 4)
Ran = dict[str, set[str]]
missing = layer_cpu.unavailable_because(torch.float32, "identity")
needs_compiled = pytest.mark.skipif(bool(missing), reason=missing)


@pytest.fixture
def ran(launched: set[str], monkeypatch: pytest.MonkeyPatch) -> Ran:
    """Records which implementations and kernels were called, by direction."""
    seen: Ran = {"forward": set(), "backward": set(), "kernels": launched}

    def noting(module: Any, name: str, kind: str, what: str) -> None:
        real = getattr(module, name)

        def noted(*arguments: Any, **options: Any) -> Any:
            seen[kind].add(what)
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, noted)

    def ready_noted(ready: Any, way: str) -> Any:
        def noted(*arguments: Any, **options: Any) -> Any:
            run = ready(*arguments, **options)

            def noted_run(*given: Any) -> Any:
                seen[way].add("triton")
                return run(*given)

            return noted_run

        return noted

    for module in (native, matmuls):
        noting(module, "forward", "forward", module.NAME)
        noting(module, "backward", "backward", module.NAME)
    noting(eager, "compose", "forward", "eager")
    for way in ("forward", "backward"):
        name = f"ready_{way}"
        monkeypatch.setattr(triton_kernels, name, ready_noted(getattr(triton_kernels, name), way))
    return seen


def run(ran: Ran, m: int, d_out: int | None, dtype: torch.dtype, mode: str) -> dict[str, Ran]:
    """Call the layer (m, 6) -> 4 (-> d_out) in a mode; what ran, by direction."""
    x = torch.randn(m, 6, dtype=dtype, requires_grad=True)
    weight = torch.randn(8, 6, dtype=dtype, requires_grad=True)
    w_p = None if d_out is None else torch.randn(d_out, 4, dtype=dtype, requires_grad=True)

    def layer(x: Tensor) -> Tensor:
        if w_p is None:
            return bilinear(x, weight, recompute=mode == "recompute")
        return bilinear_mlp(x, weight, w_p, recompute=mode == "recompute")

    if mode == "compiled":
        torch.compiler.reset()
        layer = torch.compile(layer, backend="aot_eager", fullgraph=True)
    if mode == "vmap":
        layer = torch.func.vmap(layer)
    found = {}
    for kinds in ran.values():
        kinds.clear()
    if mode == "three dimensions":
        x = x.detach().view(1, m, 6).requires_grad_()
    with torch.set_grad_enabled(mode != "no_grad"):
        out = layer(x)
    found["forward"] = {name: set(kinds) for name, kinds in ran.items()}
    for kinds in ran.values():
        kinds.clear()
    if mode != "no_grad":
        out.sum().backward()
        # Nothing of ours runs backward where autograd recorded torch's own operations.
        ran["backward"] = ran["backward"] or {"eager"}
        found["backward"] = {name: set(kinds) for name, kinds in ran.items()}
    return found


def said(m: int, d_out: int | None, dtype: torch.dtype, mode: str) -> list[Any]:
    sizes = (m, 6, 4) if d_out is None else (m, 6, 4, d_out)
    options = {"dtype": dtype, "recompute": mode == "recompute", "compiled": mode == "compiled"}
    if mode != "vmap":
        return list(explain(sizes, **options).choices)
    answers: list[Any] = []

    def asked(x: Tensor) -> Tensor:
        answers.extend(explain(sizes, **options).choices)
        return x

    torch.func.vmap(asked)(torch.zeros(2))
    return answers


def compare(ran: Ran, m: int, d_out: int | None, dtype: torch.dtype, mode: str) -> None:
    found = run(ran, m, d_out, dtype, mode)
    for choice in said(m, d_out, dtype, mode):
        direction = choice.op.rpartition("_")[2]
        if direction not in found:
            continue
        what = found[direction]
        assert what[direction] == {choice.implementation}, (choice, found)
        kernels = {name.split("_")[0] for name in what["kernels"]} - {"add"}
        wanted = {choice.kernel.replace("pointwise", "product")} if choice.kernel else set()
        assert kernels == wanted, (choice, found)


def test_a_gate_is_explained() -> None:
    expected = {"matmuls" if missing else "native"}
    for what in ((40, 6, 4, 3), BilinearMLP(6, 4, 3, gate="gelu")):
        assert {c.implementation for c in explain(what, gate="gelu").choices} == expected
    with pytest.raises(ValueError, match="gate: expected one of"):
        explain((40, 6, 4, 3), gate="swish")


MODES = ["plain", "no_grad", "recompute", "three dimensions", "vmap", "compiled"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("d_out", [None, 3])
def test_torchs_implementations(
    mode: str,
    d_out: int | None,
    ran: Ran,
    paths: Callable[..., None],
) -> None:
    paths(compiled=False, small=SMALL)
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
    for m, dtype in itertools.product([1, 39, 40, 60, 61, 200], dtypes):
        compare(ran, m, d_out, dtype, mode)


@needs_compiled
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("d_out", [None, 3])
def test_the_compiled_layer(
    mode: str, d_out: int | None, ran: Ran, paths: Callable[..., None]
) -> None:
    paths(small=SMALL)
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
    for m, dtype in itertools.product([1, 40], dtypes):
        compare(ran, m, d_out, dtype, mode)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("d_out", [None, 3])
def test_autocast(d_out: int | None, compiled: bool, ran: Ran, paths: Callable[..., None]) -> None:
    paths(compiled=compiled, small=SMALL)
    for m, dtype in itertools.product([39, 40], [torch.float32, torch.float64]):
        with torch.autocast("cpu", torch.bfloat16):
            compare(ran, m, d_out, dtype, "plain")


@pytest.mark.parametrize("kernel", ["mlp", "dual", "pointwise"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are interpreted without a GPU only")
def test_triton_by_the_interpreter(
    mode: str,
    kernel: str,
    ran: Ran,
    paths: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = {f"{k}_{way}": 0 for k in ("mlp", "dual") for way in ("forward", "backward")}
    table = dispatch.table()["paths"]["sm_90"]["ieee"]
    for name, limit in limits.items():
        if kernel == "pointwise" or (kernel == "dual" and name.startswith("mlp")):
            monkeypatch.setitem(table, name, dict.fromkeys(table[name], limit))
    paths(interpreted=True)
    for m, d_out in itertools.product([1, 17], [None, 3]):
        compare(ran, m, d_out, torch.float32, mode)


def test_the_small_mlp(ran: Ran, paths: Callable[..., None]) -> None:
    """With a projection a small call runs the autograd Function, as a large one does."""
    paths(compiled=False)
    layer = BilinearMLP(6, 4, 3)
    assert type(layer(torch.randn(63, 6)).grad_fn).__name__ == "BilinearFunctionBackward"
    assert {c.implementation for c in explain(layer, rows=63).choices} == {"matmuls"}
    assert ran["forward"] == {"matmuls"}


@needs_compiled
def test_sizes_of_the_compiled_layer(
    paths: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths()
    monkeypatch.setattr(layer_cpu, "processor", lambda: "avx512_bf16")
    for sizes in ((4, 64, 8), (16384, 512, 1024), (4096, 64, 32, 16)):
        assert {c.implementation for c in explain(sizes).choices} == {"native"}
    assert "compiled for" in str(explain((4, 64, 8)))
    deep = explain((1024, 1100, 1000))
    assert {c.implementation for c in deep.choices} == {"matmuls"}
    assert "times torch's rate at (1024, 1024, 1024)" in str(deep)
    assert "no float64" in str(explain((4, 64, 8), dtype=torch.float64))


def test_sizes(paths: Callable[..., None]) -> None:
    paths(compiled=False)
    large = explain((16384, 64, 1024))
    assert [c.op for c in large.choices] == ["bilinear_forward", "bilinear_backward"]
    assert {c.implementation for c in large.choices} == {"matmuls"}
    assert "no Triton kernels for cpu" in str(large)
    assert "all 16384 rows at once" in str(large)
    small = explain((4, 64, 8))
    assert {c.implementation for c in small.choices} == {"eager"}
    assert "don't pay for an autograd Function" in str(small)
    for what in ("abc", 5, torch.zeros(3)):
        with pytest.raises(ValueError, match="what: expected a module"):
            explain(what)
    with pytest.raises(ValueError, match=r"what: expected .*got \(1, 2\)"):
        explain((1, 2))


def test_models(paths: Callable[..., None]) -> None:
    paths()
    model = nn.ModuleDict(
        {
            "mlp": BilinearMLP(6, 4, 3),
            "layer": Bilinear(6, 4),
            "model": reference.Model(reference.ModelConfig(3, 4)),
        }
    )
    fuse(model)
    found = explain(model, rows=128)
    assert [(c.name, c.op) for c in found.choices] == [
        (name, f"{family}_{way}")
        for name, family in (("mlp", "mlp"), ("layer", "bilinear"), ("model", "mlp"))
        for way in ("forward", "backward")
    ]
    assert len(str(found).splitlines()) == 6
    assert "no bilinear layer" in str(explain(nn.Linear(2, 2)))


def test_kernels_say_their_own_reason(paths: Callable[..., None]) -> None:
    paths(interpreted=True)
    for choice in explain((4096, 64, 32, 16)).choices:
        assert choice.implementation == "triton"
        assert choice.kernel in ("mlp", "dual", "pointwise")
        assert choice.reason
