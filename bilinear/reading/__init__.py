"""How weights are read: interaction matrices, spectra, Fourier circuits, similarity."""

from importlib import import_module
from types import ModuleType

__all__ = ["exact_circuit", "fourier", "hosvd", "interactions", "similarity", "spectra", "weights"]


# Imports a file at its first use, so that `bilinear.reading.spectra` works without an import of it.
def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module 'bilinear.reading' has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return list(__all__)
