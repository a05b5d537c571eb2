from collections.abc import Callable, Iterator

import pytest

from bilinear.kernels import layer_cpu
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
        select._chosen.clear()

    built = layer_cpu._compiled
    yield set_paths
    select._chosen.clear()
