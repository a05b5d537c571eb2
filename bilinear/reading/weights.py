"""w_l, w_r and w_p of a model, a state dict or a tuple, checked; all of reading starts here."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor, nn


class HasWeights(Protocol):
    """A model with w_l and w_r (d, d_in), w_p (d_out, d): `BilinearMLP`, `reference.Model`, …"""

    @property
    def w_l(self) -> Tensor: ...  # noqa: D102
    @property
    def w_r(self) -> Tensor: ...  # noqa: D102
    @property
    def w_p(self) -> Tensor: ...  # noqa: D102


class Weights(NamedTuple):
    """w_l, w_r (…, d, d_in) and w_p (…, d_out, d), leading dimensions being models."""

    w_l: Tensor
    w_r: Tensor
    w_p: Tensor

    def double(self) -> "Weights":
        """Return them in float64."""
        return Weights(*(w.double() for w in self))


# Models that the functions of this room accept: a module, its `state_dict` (or a mapping with the
# keys w_l, w_r and w_p), or the three tensors.
Readable = HasWeights | Mapping[str, Tensor] | tuple[Tensor, Tensor, Tensor]
Outputs = int | Sequence[int] | None


def weights_of(model: Readable, output: Outputs = None, *, pairs: bool = False) -> Weights:
    """Return the weights of a model, with the rows of w_p for `output` alone.

    Biases are ignored: interaction matrices hold the quadratic term only. A module's weights are
    detached; given tensors are not. `output` None is all d_out rows of w_p. With `pairs`, d_in must
    be 2p.

    Raises:
        TypeError: `model` is no `Readable`, or its weights are not floating tensors of one dtype.
        ValueError: shapes or devices that don't match, a gate other than the identity, an output
            that w_p doesn't have.
    """
    w = _found(model)
    _check(w, pairs)
    return w if output is None else w._replace(w_p=w.w_p[..., _rows(output, w.w_p.shape[-2]), :])


def _found(model: Readable) -> Weights:
    if isinstance(model, Mapping):
        return _of_mapping(model)
    if isinstance(model, tuple | list):
        if len(model) != 3:
            raise TypeError(f"model: expected w_l, w_r and w_p, got {len(model)} items")
        return Weights(*model)
    if not all(hasattr(model, name) for name in Weights._fields):
        raise TypeError(
            "model: expected a model with w_l, w_r and w_p, its state_dict, or the three tensors, "
            f"got {type(model).__name__}"
        )
    _check_gate(model)
    found = (getattr(model, name) for name in Weights._fields)
    return Weights(*(w.detach() if isinstance(w, Tensor) else w for w in found))


def _check_gate(model: HasWeights) -> None:
    gate = getattr(model, "gate", None)
    if not (gate is None or gate == "identity" or isinstance(gate, nn.Identity | nn.Linear)):
        raise ValueError(
            f"model: expected the identity gate, got {gate}: its outputs are no quadratic forms of "
            "the input, so no interaction matrices give them"
        )


def _of_mapping(state: Mapping[str, Tensor]) -> Weights:
    if all(name in state for name in Weights._fields):
        return Weights(*(state[name] for name in Weights._fields))
    try:
        packed, w_p = state["bi_linear.weight"], state["projection.weight"]
    except KeyError:
        raise ValueError(
            "model: expected a state dict with bi_linear.weight and projection.weight, got the "
            f"keys {sorted(map(str, state))}"
        ) from None
    if not isinstance(packed, Tensor):
        raise TypeError(f"bi_linear.weight: expected a tensor, got {type(packed).__name__}")
    if packed.ndim < 2 or packed.shape[-2] % 2:
        raise ValueError(f"bi_linear.weight: expected (2d, d_in), got {tuple(packed.shape)}")
    w_l, w_r = packed.chunk(2, dim=-2)
    return Weights(w_l, w_r, w_p)


def _check(w: Weights, pairs: bool) -> None:
    for name, value in w._asdict().items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
        if value.dtype != w.w_l.dtype or not value.is_floating_point():
            raise TypeError(
                f"{name}: expected one floating dtype for all, got {value.dtype} beside "
                f"{w.w_l.dtype}"
            )
        if value.device != w.w_l.device:
            raise ValueError(f"{name}: expected w_l's device {w.w_l.device}, got {value.device}")
    if w.w_l.shape != w.w_r.shape or w.w_l.ndim < 2:
        raise ValueError(
            "w_l, w_r: expected one shape (…, d, d_in), got "
            f"{tuple(w.w_l.shape)} and {tuple(w.w_r.shape)}"
        )
    d, d_in = w.w_l.shape[-2:]
    if w.w_p.ndim < 2 or w.w_p.shape[-1] != d:
        raise ValueError(f"w_p: expected (…, d_out, d) = (…, d_out, {d}), got {tuple(w.w_p.shape)}")
    if pairs and d_in % 2:
        raise ValueError(f"w_l: expected d_in = 2p for pairs of one-hots, got {d_in}")


def _rows(output: int | Sequence[int], d_out: int) -> list[int]:
    rows = list(output) if isinstance(output, Sequence) else [output]
    for row in rows:
        if not isinstance(row, int) or not 0 <= row < d_out:
            raise ValueError(f"output: expected integers from 0 to {d_out - 1}, got {row!r}")
    return rows


def drop_output(values: Tensor, output: Outputs, dim: int) -> Tensor:
    """Remove the dimension of outputs if `output` is a single one, as indexing does."""
    return values.squeeze(dim) if isinstance(output, int) else values


def modulus(w: Weights) -> int:
    """Return p of a model of (a + b) mod p; raises ValueError unless w_p is (…, p, d)."""
    d, p = w.w_l.shape[-2], w.w_l.shape[-1] // 2
    if w.w_p.shape[-2] != p:
        raise ValueError(f"w_p: expected (…, p, d) = (…, {p}, {d}), got {tuple(w.w_p.shape)}")
    return p
