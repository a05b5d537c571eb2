"""A study: the product of lists of settings, in one folder, each cell as a sweep by itself."""

import errno
import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import bilinear
from bilinear.cli.commands import main
from bilinear.cli.options import build_parser, study_from
from bilinear.errors import ConfigError, ResultsError
from bilinear.experiment.study import Study
from bilinear.plots import accuracy_by_modulus, perfect_share_map

ROOT = Path(__file__).parents[1]
SHORT = ["--fused", "--widths", "6,3", "--seeds", "2", "--steps", "60"]
GRID = [*SHORT, "--p", "5,7", "--train-frac", "0.6,0.8"]


def files(path: Path) -> list[str]:
    """Names of all files but `sessions.json`, which differs between runs."""
    found = (f for f in path.rglob("*") if f.is_file() and f.name != "sessions.json")
    return sorted(str(f.relative_to(path)) for f in found)


def same_files(a: Path, b: Path) -> bool:
    return files(a) == files(b) == filecmp.cmpfiles(a, b, files(a), shallow=False)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study") / "out"
    assert main([*GRID, "--out", str(out)]) == 0
    return out


def test_the_product_is_the_study() -> None:
    grid = ["--fused", "--p", "5,7", "--lr", "0.1,0.01", "--weight-decay", "0,1", "--steps", "9"]
    study = study_from(build_parser().parse_args(grid))
    seen = [(c.p, c.lr.start, c.weight_decay.start, c.widths[0]) for c in study]
    assert seen == [(p, lr, wd, p) for p in (5, 7) for lr in (0.1, 0.01) for wd in (0.0, 1.0)]
    assert Study.from_json(study.to_json()) == study
    ratio = {round(cell.lr.end / cell.lr.start, 12) for cell in study}
    assert len(ratio) == 1


def test_one_table_of_all_cells(folder: Path) -> None:
    results = bilinear.load_results(folder)
    table = results.table
    columns = ["p", "train_frac", "lr", "weight_decay", "d_hidden", "seed"]
    assert list(table.columns[:6]) == columns
    assert len(table) == 16
    assert not table[columns].duplicated().any()
    assert results.complete
    assert len(results.study) == 4
    cell = results.cell(p=7, train_frac=0.8)
    mine = table[(table["p"] == 7) & (table["train_frac"] == 0.8)].reset_index(drop=True)
    assert mine.drop(columns=columns[:4]).equals(cell.table)
    assert cell.models[6, 1]["projection.weight"].shape == (7, 6)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["models"] == 16
    assert summary["perfect"] == int(table["perfect"].sum())
    with pytest.raises(ConfigError, match=r"expected settings that fit one cell, .* fit 2"):
        results.cell(p=7)
    with pytest.raises(ConfigError, match=r"expected settings among p, .* got width"):
        results.cell(width=7)


def test_a_cell_has_the_bits_of_a_sweep_by_itself(folder: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    assert main([*SHORT, "--p", "7", "--train-frac", "0.8", "--out", str(alone)]) == 0
    for picture in alone.glob("*.png"):
        picture.unlink()
    assert same_files(alone, bilinear.load_results(folder).cell(p=7, train_frac=0.8).path)


def test_lists_of_one_are_a_sweep(tmp_path: Path) -> None:
    assert main([*SHORT, "--p", "5", "--lr", "0.05", "--out", str(tmp_path / "one")]) == 0
    assert isinstance(bilinear.load_results(tmp_path / "one"), bilinear.Results)


def test_killed_and_started_again_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    grid = ["--p", "11,13", "--widths", "9..6", "--steps", "1500", "--hold", "150"]
    command = [sys.executable, "sweep.py", "--fused", *grid, "--out"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        [*command, str(killed)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not any(killed.glob("cells/*/models/*.safetensors")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "table.parquet").exists()
    assert main(["--fused", *grid, "--out", str(killed)]) == 0
    assert main(["--fused", *grid, "--out", str(whole)]) == 0
    assert same_files(killed, whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--p", "7,5,7"], "--p: expected each once, got 7 again"),
        (["--lr", "0.1,0.10"], "--lr: expected each once, got 0.1 again"),
        (["--train-frac", "0.5,x"], "--train-frac: expected numbers such as 0.3,0.5, got '0.5,x'"),
        (["--weight-decay", "1,,2"], "--weight-decay: expected numbers such as 0.3,0.5"),
        (["--seeds", "1,1"], "seeds: expected each once, got 1 again"),
        (["--p", "5,7", "--train-frac", "0.5,1"], "expected 0 < fraction < 1, got 1.0"),
        (
            ["--p", "2..1001", "--widths", "1..1000", "--seeds", "1000"],
            "study: expected at most 1,000,000 models, got 1,000,000,000",
        ),
    ],
)
def test_bad_lists_are_one_line_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    out, began = tmp_path / "out", time.monotonic()
    assert main(["--fused", *arguments, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()
    assert time.monotonic() - began < 5


def test_another_study_is_not_mixed_in(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(folder)
    assert main([*SHORT, "--p", "5,11", "--out", str(folder)]) == 2
    assert "belongs to another study" in capsys.readouterr().err
    assert main([*SHORT, "--p", "5", "--out", str(folder)]) == 2
    export = ["export", str(folder), "--format", "notebook", "--file", "nowhere.pkl"]
    assert main(export) == 2
    assert "expected a sweep, got a study" in capsys.readouterr().err
    assert files(folder) == before


def test_a_strange_or_damaged_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main([*GRID, "--out", str(tmp_path)]) == 2
    assert "expected a new folder or this study's" in capsys.readouterr().err
    (tmp_path / "study.json").write_text('{"cells": 3}')
    with pytest.raises(ResultsError, match=r"study\.json: damaged"):
        bilinear.load_results(tmp_path)


def test_show_and_dry_run(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["show", str(folder), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [(c["p"], c["train_frac"]) for c in said["cells"]] == [
        (5, 0.6),
        (5, 0.8),
        (7, 0.6),
        (7, 0.8),
    ]
    assert main([*GRID, "--dry-run", "--out", str(tmp_path / "none")]) == 0
    assert "4 cells, 16 models" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_plots_show_the_table(folder: Path) -> None:
    table = bilinear.load_results(folder).table
    ax = accuracy_by_modulus(table, Figure().subplots())
    for line, (_, group) in zip(ax.lines, table.groupby("p"), strict=True):
        median = group.groupby("d_hidden")["full_acc"].median()
        assert list(line.get_xdata()) == [3, 6]
        assert list(line.get_ydata()) == pytest.approx(list(median))
    table.loc[(table["train_frac"] == 0.6) & (table["d_hidden"] == 3), "perfect"] = True
    table.loc[(table["train_frac"] == 0.8) & (table["d_hidden"] == 6), "perfect"] = False
    ax = perfect_share_map(table, Figure().subplots())
    shown = ax.images[0].get_array()
    assert shown is not None
    assert shown.shape == (2, 2)
    assert shown[0, 0] == 1
    assert shown[1, 1] == 0


def test_a_full_disk_is_one_line_and_nothing_half_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, fsync, left = tmp_path / "out", os.fsync, 21

    def full_after_a_while(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_after_a_while)
        assert main([*GRID, "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"bilinear: No space left on device: {out}/cells/")
    assert said.count("\n") == 1
    assert left < 0
    assert not list(out.rglob("*.partial"))
    assert main([*GRID, "--out", str(out)]) == 0
    assert bilinear.load_results(out).complete


def test_a_lost_study_file_is_written_again_beside_its_cells(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "study.json").rename(copy / "notes.txt")
    assert main([*GRID, "--p", "5,11", "--out", str(copy)]) == 2
    assert main([*GRID, "--out", str(copy)]) == 0
    (copy / "notes.txt").unlink()
    assert same_files(copy, folder)
