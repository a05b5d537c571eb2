import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # workers and the commands they start share the cores
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


class _HuggingFacesKernels:
    """Finds Hugging Face's installed package `kernels`, not the folder of that name at the root.

    transformers imports the package if its metadata are installed, and would fail on the folder.
    """

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "kernels":
            return None
        root = Path(__file__).parents[1]
        return PathFinder.find_spec(name, [p for p in sys.path if Path(p).resolve() != root])


sys.meta_path.insert(0, _HuggingFacesKernels)


def _interpret_kernels() -> None:
    """Import the Triton kernels for Triton's interpreter, which runs them on CPU tensors.

    Triton reads the variable where a kernel is defined, and its library defines kernels when it is
    first imported. So this runs before any test module is imported. Afterwards the variable is
    restored for code that reads it later.
    """
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    for name in ("dual", "grid_triton", "mlp", "pointwise"):
        importlib.import_module(f"bilinear.kernels.{name}")
    # Triton itself would import this at the first launch, when the variable is restored.
    importlib.import_module("triton.experimental.gluon")
    if before is None:
        del os.environ["TRITON_INTERPRET"]
    else:
        os.environ["TRITON_INTERPRET"] = before


if not torch.cuda.is_available() and importlib.util.find_spec("triton") is not None:
    _interpret_kernels()


@pytest.fixture(scope="session", autouse=True)
def _rate_cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the rates that tests and the commands they start measure out of the user's cache."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("BILINEAR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device; torch.cuda.is_available() is False")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
