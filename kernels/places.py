"""Where the elements of a call's tensors lie: what its launches follow from, beside their dtype.

Kernels of tensors with equal places start alike but for their pointers, so launchers keep what they
once worked out for them.
"""

import importlib
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

# Shape and strides of a tensor.
Place = tuple[Sequence[int], Sequence[int]]
T = TypeVar("T")
_PLAIN = (Tensor, torch.nn.Parameter)


class Kept(dict[Hashable, T]):
    """What was worked out, by what it follows from; emptied when it has `most` entries."""

    most = 4096

    def keep(self, key: Hashable, value: T) -> T:
        """Store and return a value."""
        if len(self) >= self.most:
            self.clear()
        self[key] = value
        return value


class How(NamedTuple):
    """What a kernel of the layer is compiled for, beside its tile."""

    dtype: torch.dtype
    device: torch.device
    precision: str
    gate: str


def are_plain(*tensors: Any) -> bool:
    """Whether each is None or a plain tensor or Parameter, strided, whose memory has its values.

    Meta tensors have no memory, and that of a conjugate's imaginary part has its negative.
    """
    for t in tensors:  # `all` would make a generator, for twice the time
        if t is not None and (
            type(t) not in _PLAIN or t.is_meta or t.layout is not torch.strided or t.is_neg()
        ):
            return False
    return True


def place(tensor: Tensor) -> Place:
    """Shape and strides."""
    return tensor.shape, tensor.stride()


def rows(m: int, columns: int) -> Place:
    """Of a new (m, columns)."""
    return (m, columns), (columns, 1)


def is_wide(*places: Place | None) -> bool:
    """Whether some element of a matrix lies further than a 32-bit offset from its first."""
    for place in places:
        if place is not None:
            (m, n), (stride_m, stride_n) = place
            if (m - 1) * stride_m + (n - 1) * stride_n >= 2**31:
                return True
    return False


def _signature(*tensors: Tensor | None) -> Hashable:
    """Equal for calls whose tensors have equal dtypes, devices, shapes and strides.

    Equal to no other if one of them is neither None nor plain.
    """
    if not are_plain(*tensors):
        return object()
    return tuple(None if t is None else (t.dtype, t.device, t.shape, t.stride()) for t in tensors)


def _kinds(*tensors: Tensor | None) -> Hashable:
    """What a kernel's compiled variant depends on in its tensors: dtypes, 16-byte alignment."""
    return tuple(None if t is None else (t.dtype, t.data_ptr() % 16 == 0) for t in tensors)


def _compiled() -> tuple[Callable[..., Hashable], Callable[..., Hashable]]:
    """Both functions in C, in a tenth of the time, where they're built and can read tensors."""
    try:
        found: Any = importlib.import_module("bilinear.kernels._places")
    except (ImportError, AttributeError):
        return _signature, _kinds
    return found.signature, found.kinds


signature, kinds = _compiled()
