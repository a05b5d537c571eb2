"""A sweep from Python: the command's bits, its progress, and its errors."""

import itertools
from pathlib import Path

import pytest

import bilinear
from bilinear.cli.commands import main
from bilinear.errors import ConfigError


def test_it_trains_what_the_command_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = bilinear.sweep(7, [6, 4], seeds=2, steps=60, out=tmp_path / "ours")
    assert "4/4 models ended" in capsys.readouterr().out
    options = ["--fused", "--p", "7", "--widths", "6,4", "--seeds", "2", "--steps", "60"]
    assert main([*options, "--out", str(tmp_path / "theirs")]) == 0
    theirs = bilinear.load_results(tmp_path / "theirs")
    assert ours.config == theirs.config
    assert ours.table.equals(theirs.table)
    capsys.readouterr()
    bilinear.sweep(7, [6, 4], seeds=2, steps=60, out=tmp_path / "ours", progress=False)
    assert capsys.readouterr().out == ""


def test_a_fresh_folder_unless_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    results = bilinear.sweep(3, steps=10, progress=False)
    assert results.config.widths == (3, 2, 1)
    assert results.path.parent == Path("runs")


def test_bad_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="p: expected an integer from 2"):
        bilinear.sweep(1, out=tmp_path / "run")
    with pytest.raises(TypeError, match="step_count"):
        bilinear.sweep(5, step_count=3, out=tmp_path / "run")
    with pytest.raises(ConfigError, match="study: expected at most 1,000,000 models"):
        bilinear.sweep(5, [1], itertools.count(), out=tmp_path / "run")
    assert not list(tmp_path.iterdir())
