"""The check of the layer's arguments: an error that names the argument, before anything runs."""

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    w_p: Tensor | None,
    b_p: Tensor | None,
) -> None:
    """Raise for the first argument that doesn't go with the others.

    Shapes wanted: x (…, d_in), weight (2d, d_in), bias (2d,), w_p (d_out, d), b_p (d_out,); one
    floating dtype (float32, bfloat16, float16 or float64) and one device for all.

    Raises:
        TypeError: an argument is no dense tensor, or its dtype differs from x's or is not floating.
        ValueError: a shape or a device doesn't fit.
    """
    arguments = {"x": x, "weight": weight, "bias": bias, "w_p": w_p, "b_p": b_p}
    given = {name: value for name, value in arguments.items() if value is not None}
    for name in ("x", "weight", *given):
        if not isinstance(arguments[name], Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(arguments[name]).__name__}")
    if x.dtype not in DTYPES:
        wanted = ", ".join(_short(dtype) for dtype in DTYPES)
        raise TypeError(f"x: expected one of the dtypes {wanted}, got {_short(x.dtype)}")
    for name, value in given.items():
        if value.layout != torch.strided:
            raise TypeError(f"{name}: expected a dense tensor, got layout {value.layout}")
        if value.dtype != x.dtype:
            raise TypeError(
                f"{name}: expected x's dtype {_short(x.dtype)}, got {_short(value.dtype)}"
            )
        if value.device != x.device:
            raise ValueError(f"{name}: expected x's device {x.device}, got {value.device}")
    if weight.dim() != 2 or weight.shape[0] % 2 or 0 in weight.shape:
        raise ValueError(
            f"weight: expected shape (2d, d_in), left half first, got {tuple(weight.shape)}"
        )
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x: expected shape (..., {weight.shape[1]}) to match weight's d_in, "
            f"got {tuple(x.shape)}"
        )
    _check_shape("bias", bias, (weight.shape[0],), "weight's 2d")
    if w_p is not None:
        d = weight.shape[0] // 2
        if w_p.dim() != 2 or w_p.shape[1] != d or w_p.shape[0] == 0:
            raise ValueError(
                f"w_p: expected shape (d_out, {d}) to match weight's d, got {tuple(w_p.shape)}"
            )
        _check_shape("b_p", b_p, (w_p.shape[0],), "w_p's d_out")


def check_unchanged(weight: Tensor, version: int) -> None:
    """Raise RuntimeError if a weight that backward needs again changed in place since forward."""
    if weight._version != version:
        raise RuntimeError(
            "weight: expected no change in place between forward and a backward that is "
            "differentiated itself"
        )


def check_sizes(**sizes: int) -> None:
    """Raise ValueError for a size of a layer that is no integer ≥ 1."""
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise ValueError(f"{name}: expected an integer ≥ 1, got {size!r}")


def _check_shape(name: str, value: Tensor | None, shape: tuple[int, ...], what: str) -> None:
    if value is not None and value.shape != shape:
        raise ValueError(
            f"{name}: expected shape {tuple(shape)} to match {what}, got {tuple(value.shape)}"
        )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
