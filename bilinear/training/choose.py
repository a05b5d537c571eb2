"""Which backend trains a sweep on this machine, and why."""

import os
from collections.abc import Sequence

import torch

from bilinear.errors import ConfigError
from bilinear.experiment.config import SweepConfig
from bilinear.kernels.grid_cpu import CpuGridModel, best_isa, unavailable_because
from bilinear.kernels.grid_torch import TorchGridModel
from bilinear.training.backend import Backend
from bilinear.training.cpu import CpuBackend
from bilinear.training.notebook import ReferenceBackend

DEVICES = ("auto", "cpu", "cuda")


def choose(
    config: SweepConfig, *, fused: bool, device: str = "auto", workers: int | None = None
) -> Backend:
    """Pick the backend for a config; raises ConfigError if there is none for these arguments.

    On a CPU it trains on `workers` threads, by default one per core that this process may use.
    """
    if device not in DEVICES:
        raise ConfigError(f"device: expected {', '.join(DEVICES)}, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: expected one this machine has, got 'cuda' (no CUDA device)")
    return _fused(config, device, workers) if fused else _reference(config, device)


def choose_for(
    cells: Sequence[SweepConfig], *, fused: bool, device: str = "auto", workers: int | None = None
) -> Backend:
    """Pick the one backend that trains all cells; raises ConfigError if it can't train each."""
    backends = [choose(cell, fused=fused, device=device, workers=workers) for cell in cells]
    return backends[0]


def _reference(config: SweepConfig, device: str) -> Backend:
    if config.narrow is not None:
        raise ConfigError("narrow: the reference loop trains each width by itself; add --fused")
    if config.batch_size == 0:
        raise ConfigError(
            "batch size: the reference loop is the notebook's minibatch one, got full; "
            "add --fused for full batch"
        )
    for name in ("lr", "weight_decay"):
        if getattr(config, name).shape != "constant":
            raise ConfigError(f"{name}: the reference loop keeps it constant; add --fused")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return ReferenceBackend(device)


def _fused(config: SweepConfig, device: str, workers: int | None) -> Backend:
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        return _gpu(config)
    if config.precision != "highest":
        raise ConfigError(f"precision: a CPU trains in true float32, got {config.precision!r}")
    reason = "on the CPU" if device == "cpu" else "no CUDA device here"
    missing = unavailable_because()
    if missing:
        return CpuBackend(TorchGridModel, 1, "torch-cpu", f"{reason}; {missing}")
    workers = workers or _cores()
    # The baseline has no fused multiply-add, so its sums round differently; all other instruction
    # sets agree bit for bit. The backend's name, which folders store, tells the two apart.
    name = "compiled-cpu-baseline" if best_isa() == "baseline" else "compiled-cpu"
    reason = f"{reason}; {best_isa()} kernel, {workers} thread{'s'[: workers > 1]}, float32"
    return CpuBackend(CpuGridModel, workers, name, reason)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpu(config: SweepConfig) -> Backend:
    from bilinear.kernels.grid_triton import PRECISIONS
    from bilinear.training.gpu import GpuBackend

    device = torch.device("cuda")
    name = torch.cuda.get_device_name(device)
    reason = f"{name}; all models at once, {PRECISIONS[config.precision]} products"
    return GpuBackend(device, reason)
