"""The checks of the layer's arguments: an error that names the argument, before anything runs."""

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def fits(
    x: Tensor,
    weight: Tensor,
    w_p: Tensor | None,
    bias: Tensor | None,
    b_p: Tensor | None,
) -> bool:
    """Whether the arguments go together.

    Shapes wanted: x (…, d_in), weight (2d, d_in), w_p (d_out, d), bias (2d,), b_p (d_out,); one
    floating dtype (float32, bfloat16, float16 or float64) and one device for all.
    """
    if not (isinstance(x, Tensor) and isinstance(weight, Tensor)):
        return False
    dtype, device = x.dtype, x.device
    if dtype not in DTYPES or weight.dtype != dtype or weight.device != device:
        return False
    if weight.dim() != 2 or x.dim() == 0:
        return False
    rows, d_in = weight.shape
    if x.shape[-1] != d_in or d_in == 0 or rows == 0 or rows % 2:
        return False
    if bias is not None and not _fits_bias(bias, rows, x):
        return False
    if w_p is None:
        return True
    if not isinstance(w_p, Tensor) or w_p.dim() != 2 or w_p.dtype != dtype or w_p.device != device:
        return False
    d_out, d = w_p.shape
    if b_p is not None and not _fits_bias(b_p, d_out, x):
        return False
    return d_out > 0 and 2 * d == rows


def _fits_bias(bias: Tensor, size: int, x: Tensor) -> bool:
    if not isinstance(bias, Tensor) or bias.dim() != 1 or bias.shape[0] != size:
        return False
    return bias.dtype == x.dtype and bias.device == x.device


def complain(
    x: Tensor,
    weight: Tensor,
    w_p: Tensor | None,
    bias: Tensor | None,
    b_p: Tensor | None,
) -> None:
    """Raise for the first argument that doesn't go with the others; see `fits`.

    Raises:
        TypeError: an argument is no tensor, or its dtype differs from x's or is not floating.
        ValueError: a shape or a device doesn't fit.
    """
    arguments = {"x": x, "weight": weight, "w_p": w_p, "bias": bias, "b_p": b_p}
    given = {name: value for name, value in arguments.items() if value is not None}
    for name in arguments:
        if name in ("x", "weight") or name in given:
            _check_tensor(name, arguments[name])
    if x.dtype not in DTYPES:
        wanted = ", ".join(_short(dtype) for dtype in DTYPES)
        raise TypeError(f"x: expected one of the dtypes {wanted}, got {_short(x.dtype)}")
    for name, value in given.items():
        if value.dtype != x.dtype:
            raise TypeError(
                f"{name}: expected x's dtype {_short(x.dtype)}, got {_short(value.dtype)}"
            )
        if value.device != x.device:
            raise ValueError(f"{name}: expected x's device {x.device}, got {value.device}")
    _check_weight(weight)
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


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")


def _check_weight(weight: Tensor) -> None:
    if weight.dim() != 2 or weight.shape[0] % 2 or 0 in weight.shape:
        raise ValueError(
            f"weight: expected shape (2d, d_in), left half first, got {tuple(weight.shape)}"
        )


def _check_shape(name: str, value: Tensor | None, shape: tuple[int, ...], what: str) -> None:
    if value is not None and value.shape != shape:
        raise ValueError(
            f"{name}: expected shape {tuple(shape)} to match {what}, got {tuple(value.shape)}"
        )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
