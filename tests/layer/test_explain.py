"""explain says what a call then does."""

import pytest
import torch
from torch import nn

from bilinear import Bilinear, BilinearMLP, explain, fuse, reference
from bilinear.layer import select as paths
from bilinear.layer import small_calls as small


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "INTERPRETED", False)


def test_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    large = explain((16384, 64, 1024))
    assert [c.op for c in large.choices] == ["bilinear_forward", "bilinear_backward"]
    assert {c.path for c in large.choices} == {"rows"}
    assert "no kernels for cpu" in str(large)
    assert "rows at a time" in str(large)
    small = explain((4, 64, 8))
    assert [(c.op, c.path) for c in small.choices] == [
        ("bilinear_forward", "composed"),
        ("bilinear_backward", "composed"),
    ]
    assert {c.path for c in explain((4, 64, 8), recompute=True).choices} == {"rows"}
    assert {c.path for c in explain((4, 64, 8, 3)).choices} == {"rows"}
    with pytest.raises(ValueError, match=r"what: expected .*got \(1, 2\)"):
        explain((1, 2))


@pytest.mark.parametrize("m", [63, 64])
def test_the_border_is_where_the_call_has_it(m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from bilinear.layer import explain as explanation

    for module in (small, explanation):
        monkeypatch.setattr(module, "SMALL", 64 * (6 + 2 * 4))
    layer = Bilinear(6, 4)
    node = type(layer(torch.randn(m, 6)).grad_fn).__name__
    path = explain(layer, rows=m).choices[0].path
    assert (path, node) == (
        ("composed", "MulBackward0") if m == 63 else ("rows", "_BilinearBackward")
    )


def test_models() -> None:
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


def test_kernels_say_their_own_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "INTERPRETED", True)
    for choice in explain((4096, 64, 32, 16)).choices:
        assert choice.path in ("mlp", "dual", "pointwise")
        assert choice.reason
