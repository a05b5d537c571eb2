from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bilinear.kernels import dual, layer_cpu, mlp, partials, pointwise
from bilinear.layer import matmuls, select, triton_kernels, two_weights


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets the limits by which an implementation is chosen, and drops cached choices."""

    def set_paths(
        *,
        compiled: bool = True,
        small: int = matmuls.SMALL,
        interpreted: bool = False,
        few: int = two_weights.FEW,
        copied: float = two_weights.COPIED_ROWS,
    ) -> None:
        monkeypatch.setattr(layer_cpu, "_compiled", built if compiled else None)
        monkeypatch.setattr(matmuls, "SMALL", small)
        monkeypatch.setattr(triton_kernels, "INTERPRETED", interpreted)
        monkeypatch.setattr(two_weights, "FEW", few)
        monkeypatch.setattr(two_weights, "COPIED_ROWS", copied)
        forget()

    built = layer_cpu._compiled
    yield set_paths
    forget()


def forget() -> None:
    """Drop what was chosen for earlier calls."""
    select._chosen.clear()
    triton_kernels._known_detail.cache_clear()


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Names of the Triton kernels that were started, "backward" behind those given dh.

    What is chosen for a call may hold another test's `launch`, so it is dropped.
    """
    names: set[str] = set()
    places_of_dh = {"dual_kernel": 3, "product_kernel": 1}

    def noting(launch: Any) -> Any:
        def noted(kernel: Any, start: Any, tensors: tuple[Any, ...]) -> None:
            name = kernel.fn.__name__
            at = places_of_dh.get(name)
            names.add(f"{name} backward" if at is not None and tensors[at] is not None else name)
            launch(kernel, start, tensors)

        return noted

    for module in (dual, mlp, partials, pointwise):
        monkeypatch.setattr(module, "launch", noting(module.launch))
    forget()
    yield names
    forget()
