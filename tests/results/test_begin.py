"""Which folders a sweep refuses without a change, and which damage its command mends."""

import hashlib
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
from folders import files, flip, run, same

import bilinear
from bilinear.cli.commands import main
from bilinear.errors import ResultsError


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "copy")


def harm(copy: Path, name: str, how: str) -> None:
    if how == "lost":
        (copy / name).unlink()
    elif how == "cut":
        (copy / name).write_bytes((copy / name).read_bytes()[:40])
    elif how == "flipped":
        flip(copy / name, 60)
    else:
        (copy / name).write_text(how)


DEEP = "[" * 100_000 + "]" * 100_000
NO_CONFIG = ["lost", "cut", "flipped", "", "[1]", "null", '{"p": {}}', DEEP, '{"p": 5}']


@pytest.mark.parametrize("name", ["config.json", "environment.json", "SHA256SUMS"])
@pytest.mark.parametrize("how", NO_CONFIG, ids=lambda how: how[:8])
def test_damaged_config_environment_or_digests_are_mended_by_the_same_command_alone(
    copy: Path, whole: Path, name: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    harm(copy, name, how)
    unknown = name == "SHA256SUMS" and how == "lost"
    if not unknown:
        with pytest.raises(ResultsError, match=r"mends it|not a results folder|expected at most"):
            bilinear.load_results(copy)
    before = {file: (copy / file).read_bytes() for file in files(copy)}
    assert run(copy, "--lr", "0.07") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert len(error) < 1000
    assert {file: (copy / file).read_bytes() for file in files(copy)} == before
    assert run(copy) == 0
    assert "mended: " in capsys.readouterr().out or unknown
    assert same(copy, whole)


def test_a_damaged_environment_without_models_is_begun_again(copy: Path, whole: Path) -> None:
    """Without a model, nothing in the folder depends on the environment."""
    shutil.rmtree(copy / "models")
    flip(copy / "environment.json", 60)
    assert run(copy, "--lr", "0.07") == 2
    assert run(copy) == 0
    assert same(copy, whole)


def test_a_damaged_config_without_models_is_begun_again(copy: Path, whole: Path) -> None:
    shutil.rmtree(copy / "models")
    (copy / "config.json").write_text("{")
    assert run(copy) == 0
    assert same(copy, whole)


def test_a_config_of_another_program_is_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert run(tmp_path) == 2
    assert "model.safetensors" in capsys.readouterr().err
    assert (tmp_path / "config.json").read_text() == '{"model_type": "llama"}'
    assert len(files(tmp_path)) == 2


def test_models_of_a_lost_config_are_not_taken_for_another_sweeps(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "config.json").unlink()
    assert run(copy, "--widths", "4..2") == 2
    assert "these are other settings" in capsys.readouterr().err


def unsealed(content: bytes) -> bytes:
    """A model's file as an earlier version wrote it: its row alone."""
    (length,) = struct.unpack("<Q", content[:8])
    about = json.loads(content[8 : 8 + length])["__metadata__"]["sealed"]
    row = json.dumps(json.loads(about)["row"])
    return safetensors.torch.save(safetensors.torch.load(content), metadata={"row": row})


def unsealed_pack(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(file, "w") as archive:
        for info, content in members:
            is_model = info.filename.endswith(".safetensors")
            archive.writestr(info, unsealed(content) if is_model else content)


@pytest.mark.parametrize("kind", ["whole", "packed"])
def test_an_earlier_versions_models_get_their_digests(
    kind: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole: Path = request.getfixturevalue(kind)
    old = shutil.copytree(whole, tmp_path / "old")
    for file in old.glob("models/*"):
        file.write_bytes(unsealed(file.read_bytes()))
    for file in old.glob("packs/*"):
        unsealed_pack(file)
    (old / "SHA256SUMS").unlink()
    results = bilinear.load_results(old)
    assert isinstance(results, bilinear.Results)
    assert not results.has_digests
    assert results.table.equals(bilinear.load_results(whole).table)
    capsys.readouterr()
    assert main(["check", str(old)]) == 0
    assert "has no digests" in capsys.readouterr().out
    assert run(old) == 0
    assert "12 models had no digest and have one now" in capsys.readouterr().out
    assert same(old, whole)


def _as_text(table: pd.DataFrame) -> pd.DataFrame:
    return table.astype(str)


def _without_accuracy(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns="full_acc")


@pytest.mark.parametrize("change", [_as_text, _without_accuracy])
def test_a_table_of_another_make_is_not_read_whatever_its_digest(
    copy: Path, whole: Path, change: Callable[[pd.DataFrame], pd.DataFrame]
) -> None:
    change(pd.read_parquet(copy / "table.parquet")).to_parquet(copy / "table.parquet")
    content = (copy / "table.parquet").read_bytes()
    sums = (copy / "SHA256SUMS").read_text().splitlines()
    kept = [line for line in sums if not line.endswith("table.parquet")]
    digests = [*kept, f"{hashlib.sha256(content).hexdigest()}  table.parquet"]
    (copy / "SHA256SUMS").write_text("".join(f"{line}\n" for line in digests))
    assert bilinear.load_results(copy).table.equals(bilinear.load_results(whole).table)
    assert main(["show", str(copy)]) == 0
    assert main(["check", str(copy)]) == 1
    assert run(copy) == 0
    assert same(copy, whole)


def test_a_path_that_is_no_utf8_is_a_fine_folder(tmp_path: Path) -> None:
    out = tmp_path / os.fsdecode(b"bad\xff\xfename")
    assert run(out) == 0
    assert main(["check", str(out)]) == 0


def test_a_link_to_nothing_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").symlink_to("nowhere")
    assert run(tmp_path / "run") == 2
    assert "expected a folder" in capsys.readouterr().err
