"""Where a sweep trains: chosen here, with the reason said."""

import os
from collections.abc import Sequence

import torch

from bilinear.backends.cpu import CpuBackend
from bilinear.backends.reference import ReferenceBackend
from bilinear.config import SweepConfig
from bilinear.errors import ConfigError
from bilinear.kernels.grid_cpu import CpuGridModel, best_isa, unavailable_because
from bilinear.kernels.grid_torch import TorchGridModel
from bilinear.training import Backend

DEVICES = ("auto", "cpu", "cuda")


def choose(config: SweepConfig, *, fused: bool, device: str = "auto") -> Backend:
    """Pick the backend for a config; raises ConfigError where none can do what was asked."""
    if device not in DEVICES:
        raise ConfigError(f"device: expected {', '.join(DEVICES)}, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: expected one this machine has, got 'cuda' (no CUDA device)")
    return _fused(config, device) if fused else _reference(config, device)


def choose_for(cells: Sequence[SweepConfig], *, fused: bool, device: str = "auto") -> Backend:
    """Pick the one backend that trains all cells; raises ConfigError if it can't train each."""
    backends = [choose(cell, fused=fused, device=device) for cell in cells]
    return backends[0]


def _reference(config: SweepConfig, device: str) -> Backend:
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


def _fused(config: SweepConfig, device: str) -> Backend:
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        return _gpu(config)
    if config.precision != "highest":
        raise ConfigError(f"precision: a CPU trains in true float32, got {config.precision!r}")
    reason = "--device cpu" if device == "cpu" else "no CUDA device here"
    missing = unavailable_because()
    if missing:
        return CpuBackend(TorchGridModel, 1, "torch-cpu", f"{reason}; {missing}")
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    reason = f"{reason}; {best_isa()} kernel, {workers} threads, float32"
    return CpuBackend(CpuGridModel, workers or 1, "compiled-cpu", reason)


def _gpu(config: SweepConfig) -> Backend:
    from bilinear.backends.gpu import GpuBackend
    from bilinear.kernels.grid_triton import PRECISIONS

    device = torch.device("cuda")
    name = torch.cuda.get_device_name(device)
    reason = f"{name}; all models at once, {PRECISIONS[config.precision]} products"
    return GpuBackend(device, reason)
