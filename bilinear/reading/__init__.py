"""What weights say: interaction matrices, spectra, Fourier circuits, similarity. Pure functions."""

from importlib import import_module
from types import ModuleType

__all__ = ["exact_circuit", "fourier", "hosvd", "interactions", "similarity", "spectra", "weights"]


# A file is imported at its first use: `bilinear.reading.spectra` needs no import of its own.
def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module 'bilinear.reading' has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return list(__all__)
