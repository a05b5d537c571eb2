from pathlib import Path

import pytest
from folders import run

from bilinear.results import packs


@pytest.fixture
def packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs of 5, 5 and 2 for the sweep of `folders`."""
    monkeypatch.setattr(packs, "LOOSE_MODELS", 11)
    monkeypatch.setattr(packs, "PACK_MODELS", 5)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep with a file for each model; no test may change it."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert run(out) == 0
    return out


@pytest.fixture
def packed(packing: None, tmp_path: Path) -> Path:
    """The same sweep in packs."""
    out = tmp_path / "packed"
    assert run(out) == 0
    return out
