"""Memory for models in training and disk for all results are checked before anything is written."""

from dataclasses import replace
from pathlib import Path

import pytest

from bilinear.cli.commands import main
from bilinear.errors import ConfigError
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.cost import notebook_bytes, training_bytes
from bilinear.kernels.grid_cpu import CpuGridModel
from bilinear.results.folder import open_folder
from bilinear.training import room
from bilinear.training.cpu import CpuBackend
from bilinear.training.notebook import ReferenceBackend
from bilinear.training.run import run_sweep

CONFIG = SweepConfig(p=7, widths=(6, 5, 2), seeds=(0, 1), steps=20, remainders=(0,))


def backend(workers: int) -> CpuBackend:
    return CpuBackend(CpuGridModel, workers, "test", "a test")


def test_memory_is_that_of_the_widest_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 2 * training_bytes(CONFIG, 6) + training_bytes(CONFIG, 5)
    folder = open_folder("memory://nothing-here")
    monkeypatch.setattr(room, "free_memory", lambda: most)
    room.check_room([CONFIG], backend(3), folder)
    monkeypatch.setattr(room, "free_memory", lambda: most - 1)
    with pytest.raises(ConfigError, match=r"^(p|widths): expected .* 3 at once of p = 7, width 6"):
        room.check_room([CONFIG], backend(3), folder)
    room.check_room([CONFIG], backend(2), folder)
    room.check_room([replace(CONFIG, seeds=(0,), widths=(6, 2))], backend(3), folder)


@pytest.mark.parametrize("name", ["p", "widths"])
def test_the_larger_argument_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    large = replace(CONFIG, p=16384) if name == "p" else replace(CONFIG, widths=(16384,))
    monkeypatch.setattr(room, "free_memory", lambda: 10**6)
    with pytest.raises(ConfigError, match=f"^{name}: expected models that train in 0.0 GB"):
        room.check_room([large], backend(1), open_folder("memory://nothing-here"))


def test_nothing_is_written_where_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(room, "free_memory", lambda: 10**9)
    out = tmp_path / "run"
    assert main(["--fused", "--p", "16384", "--widths", "2", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "--p: expected models that train in 1.0 GB" in said
    assert said.count("\n") == 1
    assert not out.exists()


def test_the_notebooks_loop_takes_a_row_for_every_pair() -> None:
    loop = ReferenceBackend("cpu")
    assert loop.model_bytes(CONFIG, 6) == notebook_bytes(CONFIG, 6) > 40 * 7**3


def test_free_memory_is_some_of_this_machines() -> None:
    free = room.free_memory()
    assert free is not None
    assert 2**26 < free < 2**50


def test_a_resumed_folder_needs_no_space_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    run_sweep(CONFIG, backend(1), out)
    usage = type("Usage", (), {"free": 0})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    wider = replace(CONFIG, widths=(600,))
    with pytest.raises(ConfigError, match=r"^out: expected .* MB of space"):
        room.check_room([wider], backend(1), open_folder(out))
    run_sweep(CONFIG, backend(1), out)
