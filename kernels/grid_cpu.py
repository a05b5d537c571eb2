"""Launcher of the compiled CPU kernel for one-hot pairs (algebra and tiles: `grid_cpu.c`)."""

import ctypes
import importlib.util
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

ISAS = ("baseline", "avx2", "avx512")
_PAD = 16


class _Model(ctypes.Structure):
    _fields_ = [
        ("p", ctypes.c_int64),
        ("d", ctypes.c_int64),
        ("n_train", ctypes.c_int64),
        ("n_pairs", ctypes.c_int64),
        ("pairs", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("moment1", ctypes.c_void_p),
        ("moment2", ctypes.c_void_p),
        ("gradient", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("beta1", ctypes.c_double),
        ("beta2", ctypes.c_double),
        ("eps", ctypes.c_double),
        ("batch", ctypes.c_int64),
        ("shuffle_key", ctypes.c_uint64),
    ]


class _Metrics(ctypes.Structure):
    _fields_ = [
        ("train_loss", ctypes.c_double),
        ("val_loss", ctypes.c_double),
        ("train_correct", ctypes.c_int64),
        ("val_correct", ctypes.c_int64),
        ("min_margin", ctypes.c_float),
    ]


class GridMetrics(NamedTuple):
    """One evaluation over all pairs: mean losses (nats), counts of right answers, least margin."""

    train_loss: float
    val_loss: float
    train_correct: int
    val_correct: int
    min_margin: float


def unavailable_because() -> str | None:
    """Say why the compiled kernel cannot be used here, or None if it can."""
    if importlib.util.find_spec("bilinear.kernels._grid_cpu") is None:
        return "the compiled CPU kernel is not built (pip install with a C compiler builds it)"
    return None


@cache
def _library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("bilinear.kernels._grid_cpu")
    if spec is None or spec.origin is None:
        raise RuntimeError(unavailable_because())
    lib = ctypes.CDLL(spec.origin)
    lib.grid_scratch_floats.argtypes = [ctypes.c_int64, ctypes.c_int64]
    lib.grid_scratch_floats.restype = ctypes.c_int64
    lib.grid_shuffled.argtypes = [ctypes.c_uint32, ctypes.c_uint32, *[ctypes.c_uint64] * 2]
    lib.grid_shuffled.restype = ctypes.c_uint32
    lib.grid_steps.argtypes = [
        ctypes.c_int,
        ctypes.POINTER(_Model),
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]
    lib.grid_steps.restype = None
    lib.grid_evaluate.argtypes = [
        ctypes.c_int,
        ctypes.POINTER(_Model),
        ctypes.POINTER(_Metrics),
    ]
    lib.grid_evaluate.restype = None
    return lib


def best_isa() -> str:
    """Name the widest instruction set that this build and this processor share."""
    return ISAS[_library().grid_best_isa()]


def shuffled(index: int, n: int, key: int, epoch: int) -> int:
    """Position `index` of the epoch's order of 0…n−1 (a keyed permutation, see the C source)."""
    return int(_library().grid_shuffled(index, n, key, epoch))


def _padded(n: int) -> int:
    return -(-n // _PAD) * _PAD


class CpuGridModel:
    """One model's weights, moments and pairs, trained in place by the compiled kernel.

    The calls release the interpreter lock: train as many models at once as there are cores, each
    in a thread of its own.
    """

    def __init__(
        self,
        w_l: Tensor,
        w_r: Tensor,
        w_p: Tensor,
        pairs: Tensor,
        n_train: int,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        batch: int = 0,
        shuffle_key: int = 0,
        isa: str | None = None,
    ) -> None:
        """Start from w_l, w_r (d, 2p) and w_p (p, d), float32, with zero moments.

        `pairs` (n, 2) int32 holds (a, b), the first `n_train` of them trained on. `batch` 0 is
        full batch; otherwise that many pairs a step, reshuffled each epoch, a last partial one
        dropped.
        `isa` is one of `ISAS`; None takes the widest.
        """
        p, d = self._p, self._d = w_p.shape
        self._isa = ISAS.index(isa or best_isa())
        self._pairs = pairs.to(torch.int32).contiguous()
        self._weights = torch.zeros(4 * p * _padded(d) + d * _padded(p))
        for packed, given in zip(self._packed(), (w_l, w_r, w_p), strict=True):
            packed[:] = given.T
        self._moment1 = torch.zeros_like(self._weights)
        self._moment2 = torch.zeros_like(self._weights)
        self._gradient = torch.empty_like(self._weights)
        self._scratch = torch.zeros(_library().grid_scratch_floats(p, d))
        floats = (
            self._weights, self._moment1, self._moment2, self._gradient, self._scratch,
        )  # fmt: skip
        if any(tensor.data_ptr() % 64 for tensor in floats):  # as the kernel's vector loads need
            raise RuntimeError("PyTorch's CPU allocator gave memory not aligned to 64 bytes")
        pointers = (tensor.data_ptr() for tensor in (self._pairs, *floats))
        self._model = _Model(p, d, n_train, len(pairs), *pointers, *betas, eps, batch, shuffle_key)
        self.steps_done = 0

    def steps(self, lr: Tensor, weight_decay: Tensor) -> None:
        """Take len(lr) AdamW steps, one value of `lr` and `weight_decay` (float64) for each."""
        n = len(lr)
        _library().grid_steps(
            self._isa,
            ctypes.byref(self._model),
            self.steps_done,
            n,
            lr.data_ptr(),
            weight_decay.data_ptr(),
        )
        self.steps_done += n

    def evaluate(self) -> GridMetrics:
        """Evaluate the weights as they stand on all pairs."""
        raw = _Metrics()
        _library().grid_evaluate(self._isa, ctypes.byref(self._model), ctypes.byref(raw))
        return GridMetrics(*(getattr(raw, name) for name in GridMetrics._fields))

    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """Copy the weights out: w_l (d, 2p), w_r (d, 2p), w_p (p, d)."""
        w_l, w_r, w_p = (
            packed.T.clone(memory_format=torch.contiguous_format) for packed in self._packed()
        )
        return w_l, w_r, w_p

    def _packed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Views of the weights as C holds them, without padding: L, R (2p, d) and W (d, p)."""
        p, d = self._p, self._d
        rows = 2 * p * _padded(d)
        left, right, projection = self._weights.split([rows, rows, d * _padded(p)])
        return (
            left.view(2 * p, -1)[:, :d],
            right.view(2 * p, -1)[:, :d],
            projection.view(d, -1)[:, :p],
        )
