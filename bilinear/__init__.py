"""Fused bilinear layers, and the modular-addition sweep that runs on them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bilinear import functional as functional
    from bilinear.experiment.config import SweepConfig as SweepConfig
    from bilinear.layer.explain import explain as explain
    from bilinear.layer.fuse import fuse as fuse
    from bilinear.layer.fuse import unfuse as unfuse
    from bilinear.layer.modules import Bilinear as Bilinear
    from bilinear.layer.modules import BilinearMLP as BilinearMLP
    from bilinear.results.open import load_results as load_results
    from bilinear.results.sweep_results import Results as Results

__version__ = "0.1.0"

# Public names and where they live: each is imported at its first use, so that `import bilinear`
# needs neither pandas nor Triton.
_HOME = {
    "Bilinear": "bilinear.layer.modules",
    "BilinearMLP": "bilinear.layer.modules",
    "Results": "bilinear.results.sweep_results",
    "SweepConfig": "bilinear.experiment.config",
    "explain": "bilinear.layer.explain",
    "functional": "bilinear.functional",
    "fuse": "bilinear.layer.fuse",
    "load_results": "bilinear.results.open",
    "unfuse": "bilinear.layer.fuse",
}

__all__ = [
    "Bilinear",
    "BilinearMLP",
    "Results",
    "SweepConfig",
    "explain",
    "functional",
    "fuse",
    "load_results",
    "unfuse",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bilinear' has no attribute {name!r}")
    home = import_module(_HOME[name])
    return home if home.__name__ == f"{__name__}.{name}" else getattr(home, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
