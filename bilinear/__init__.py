"""Fused bilinear layers, and the modular-addition sweep that runs on them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bilinear import functional as functional
    from bilinear.config import SweepConfig as SweepConfig
    from bilinear.explanation import explain as explain
    from bilinear.fusing import fuse as fuse
    from bilinear.fusing import unfuse as unfuse
    from bilinear.modules import Bilinear as Bilinear
    from bilinear.modules import BilinearMLP as BilinearMLP
    from bilinear.results import Results as Results
    from bilinear.results import load_results as load_results

__version__ = "0.1.0"

# Public names and where they live: each is imported at its first use, so that `import bilinear`
# needs neither pandas nor Triton.
_HOME = {
    "Bilinear": "bilinear.modules",
    "BilinearMLP": "bilinear.modules",
    "Results": "bilinear.results",
    "SweepConfig": "bilinear.config",
    "explain": "bilinear.explanation",
    "functional": "bilinear.functional",
    "fuse": "bilinear.fusing",
    "load_results": "bilinear.results",
    "unfuse": "bilinear.fusing",
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
