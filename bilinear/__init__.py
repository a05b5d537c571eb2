"""Fused bilinear layers, and the modular-addition sweep that runs on them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bilinear.config import SweepConfig as SweepConfig
    from bilinear.results import Results as Results
    from bilinear.results import load_results as load_results

__version__ = "0.1.0"

# Public names and where they live: each is imported at its first use, so that `import bilinear`
# needs neither pandas nor Triton.
_HOME = {
    "Results": "bilinear.results",
    "SweepConfig": "bilinear.config",
    "load_results": "bilinear.results",
}

__all__ = ["Results", "SweepConfig", "load_results"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bilinear' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
