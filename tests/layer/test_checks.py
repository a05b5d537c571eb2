"""The error for a bad argument names it, what was expected and what came."""

from typing import Any

import pytest
import torch

from bilinear import Bilinear, BilinearMLP
from bilinear.functional import bilinear, bilinear_mlp
from bilinear.layer import custom_ops, eager, matmuls, native

GOOD: dict[str, Any] = {
    "x": torch.zeros(2, 6),
    "weight": torch.zeros(8, 6),
    "w_p": torch.zeros(3, 4),
    "bias": torch.zeros(8),
    "b_p": torch.zeros(3),
}


def bad(name: str, value: Any) -> dict[str, Any]:
    return {**GOOD, name: value}


CASES = [
    ("x", torch.zeros(2, 5), ValueError, r"x: expected shape \(\.\.\., 6\).*got \(2, 5\)"),
    ("x", torch.zeros(()), ValueError, r"x: expected shape .*got \(\)"),
    ("x", [1.0], TypeError, "x: expected a tensor, got list"),
    ("x", torch.zeros(2, 6).int(), TypeError, "x: expected one of the dtypes .*got int32"),
    ("x", torch.zeros(2, 6).cfloat(), TypeError, "x: expected one of .*got complex64"),
    ("weight", None, TypeError, "weight: expected a tensor, got NoneType"),
    ("weight", torch.zeros(7, 6), ValueError, r"weight: expected shape \(2d, d_in\).*\(7, 6\)"),
    ("weight", torch.zeros(0, 6), ValueError, r"weight: expected shape .*got \(0, 6\)"),
    ("weight", torch.zeros(8, 0), ValueError, r"weight: expected shape .*got \(8, 0\)"),
    ("weight", torch.zeros(8), ValueError, r"weight: expected shape .*got \(8,\)"),
    (
        "weight",
        torch.zeros(8, 6).half(),
        TypeError,
        "weight: expected x's dtype float32, got float16",
    ),
    (
        "weight",
        torch.zeros(8, 6, device="meta"),
        ValueError,
        "weight: expected x's device cpu, got meta",
    ),
    ("w_p", torch.zeros(3, 8), ValueError, r"w_p: expected shape \(d_out, 4\).*got \(3, 8\)"),
    ("w_p", torch.zeros(0, 4), ValueError, r"w_p: expected shape .*got \(0, 4\)"),
    ("w_p", torch.zeros(4), ValueError, r"w_p: expected shape .*got \(4,\)"),
    ("w_p", torch.zeros(3, 4).double(), TypeError, "w_p: expected x's dtype float32, got float64"),
    ("w_p", torch.zeros(3, 4, device="meta"), ValueError, "w_p: expected x's device cpu"),
    ("w_p", None, TypeError, "w_p: expected a tensor, got NoneType"),
    ("bias", torch.zeros(4), ValueError, r"bias: expected shape \(8,\).*got \(4,\)"),
    (
        "bias",
        torch.zeros(8).bfloat16(),
        TypeError,
        "bias: expected x's dtype float32, got bfloat16",
    ),
    ("bias", torch.zeros(8, device="meta"), ValueError, "bias: expected x's device cpu"),
    ("x", torch.zeros(2, 6).to_sparse(), TypeError, "x: expected a dense tensor, got layout"),
    ("weight", torch.zeros(8, 6).to_sparse(), TypeError, "weight: expected a dense tensor"),
    ("bias", 0.0, TypeError, "bias: expected a tensor, got float"),
    ("b_p", torch.zeros(4), ValueError, r"b_p: expected shape \(3,\).*got \(4,\)"),
    ("b_p", torch.zeros(3).double(), TypeError, "b_p: expected x's dtype float32, got float64"),
    ("b_p", torch.zeros(3, device="meta"), ValueError, "b_p: expected x's device cpu"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), CASES)
def test_error_names_the_argument_before_anything_runs(
    name: str,
    value: Any,
    error: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("something ran")

    for module in (custom_ops, eager, matmuls, native):
        monkeypatch.setattr(module, "forward", fail)
    monkeypatch.setattr(eager, "compose", fail)
    given = bad(name, value)
    with pytest.raises(error, match=message):
        bilinear_mlp(given["x"], given["weight"], given["w_p"], given["bias"], given["b_p"])
    if name not in ("w_p", "b_p"):
        with pytest.raises(error, match=message):
            bilinear(given["x"], given["weight"], given["bias"])
    if name in ("x", "weight"):
        with pytest.raises(error, match=message):
            bilinear(given["x"], given["weight"])


def test_what_fits_passes() -> None:
    assert bilinear_mlp(**GOOD).shape == (2, 3)


def test_mixed_dtypes_are_cast_by_autocast_only() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        out = bilinear_mlp(**bad("x", torch.zeros(2, 6, dtype=torch.bfloat16)))
    assert out.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match="weight: expected"):
        bilinear_mlp(**bad("x", torch.zeros(2, 6, dtype=torch.float64)))


def test_sizes_of_a_layer() -> None:
    with pytest.raises(ValueError, match="d_out: expected an integer ≥ 1, got -4"):
        Bilinear(8, -4)
    with pytest.raises(ValueError, match=r"d_hidden: expected an integer ≥ 1, got 2\.0"):
        BilinearMLP(8, 2.0, 4)
    with pytest.raises(TypeError, match="positional"):
        BilinearMLP(8, 16, 64, 64)
