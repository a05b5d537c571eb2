from collections.abc import Callable, Iterator

import pytest

from bilinear.layer import matmuls, native, select, triton_kernels


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets what the choice of an implementation hangs on; choices made before are forgotten."""

    def set_paths(
        *, compiled: bool = True, small: int = matmuls.SMALL, interpreted: bool = False
    ) -> None:
        monkeypatch.setattr(native, "MAX_D_IN", most if compiled else 0)
        monkeypatch.setattr(matmuls, "SMALL", small)
        monkeypatch.setattr(triton_kernels, "INTERPRETED", interpreted)
        select._chosen.clear()

    most = native.MAX_D_IN
    yield set_paths
    select._chosen.clear()
