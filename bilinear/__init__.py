"""Fused bilinear layers, and the modular-addition sweep that runs on them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bilinear import functional as functional
    from bilinear import parallel as parallel
    from bilinear import plots as plots
    from bilinear import reading as reading
    from bilinear import reference as reference
    from bilinear import widgets as widgets
    from bilinear.cli.sweep import sweep as sweep
    from bilinear.experiment.config import SweepConfig as SweepConfig
    from bilinear.layer.explain import explain as explain
    from bilinear.layer.fuse import fuse as fuse
    from bilinear.layer.fuse import unfuse as unfuse
    from bilinear.layer.modules import Bilinear as Bilinear
    from bilinear.layer.modules import BilinearMLP as BilinearMLP
    from bilinear.results.open import load_results as load_results
    from bilinear.results.study_results import StudyResults as StudyResults
    from bilinear.results.sweep_results import Results as Results

__version__ = "0.1.0"

# The module of each public name. A name is imported at its first use, so that `import bilinear`
# needs neither PyTorch, pandas nor Triton.
_MODULES = {
    "Bilinear": "bilinear.layer.modules",
    "BilinearMLP": "bilinear.layer.modules",
    "Results": "bilinear.results.sweep_results",
    "StudyResults": "bilinear.results.study_results",
    "SweepConfig": "bilinear.experiment.config",
    "explain": "bilinear.layer.explain",
    "functional": "bilinear.functional",
    "fuse": "bilinear.layer.fuse",
    "load_results": "bilinear.results.open",
    "parallel": "bilinear.parallel",
    "plots": "bilinear.plots",
    "reading": "bilinear.reading",
    "reference": "bilinear.reference",
    "sweep": "bilinear.cli.sweep",
    "unfuse": "bilinear.layer.fuse",
    "widgets": "bilinear.widgets",
}

__all__ = [
    "Bilinear",
    "BilinearMLP",
    "Results",
    "StudyResults",
    "SweepConfig",
    "explain",
    "functional",
    "fuse",
    "load_results",
    "parallel",
    "plots",
    "reading",
    "reference",
    "sweep",
    "unfuse",
    "widgets",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'bilinear' has no attribute {name!r}")
    from bilinear.errors import extra

    with extra("sweep"):
        module = import_module(_MODULES[name])
    return module if module.__name__ == f"{__name__}.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
