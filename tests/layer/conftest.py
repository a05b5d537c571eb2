from collections.abc import Callable, Iterator

import pytest

from bilinear.layer import matmuls, select, triton_kernels


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets what the choice of an implementation hangs on; choices made before are forgotten."""

    def set_paths(*, small: int = matmuls.SMALL, interpreted: bool = False) -> None:
        monkeypatch.setattr(matmuls, "SMALL", small)
        monkeypatch.setattr(triton_kernels, "INTERPRETED", interpreted)
        select._chosen.clear()

    yield set_paths
    select._chosen.clear()
