"""Packs: their content after any kill, and that a sweep with packs reads as one without."""

import filecmp
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import SWEEP

import bilinear
from bilinear.cli.commands import main
from bilinear.errors import ResultsError
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.record import Finished, Job
from bilinear.results import packs
from bilinear.results import writer as results_writer
from bilinear.results.folder import LocalFolder
from bilinear.results.packs import Packing
from bilinear.training.choose import choose
from bilinear.training.run import run_sweep


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("loose") / "run")


@pytest.fixture
def packed(packing: None, tmp_path: Path) -> Path:
    return run(tmp_path / "packed")


def run(out: Path) -> Path:
    assert main([*SWEEP, "--out", str(out)]) == 0
    return out


def files(path: Path) -> list[str]:
    """Names of all files but `sessions.json`, which differs between runs."""
    found = (f for f in path.rglob("*") if f.is_file() and f.name != "sessions.json")
    return sorted(str(f.relative_to(path)) for f in found)


def test_every_model_is_in_one_pack_in_the_order_of_the_table(packing: None) -> None:
    config = SweepConfig(p=7, widths=(2, 9, 4), seeds=(5, 1, 3, 0), remainders=())
    packing = Packing(config)
    jobs = [job for pack in range(packing.packs) for job in packing.jobs(pack)]
    assert jobs == [Job(d, seed) for d in (9, 4, 2) for seed in (0, 1, 3, 5)]
    assert [len(packing.jobs(pack)) for pack in range(packing.packs)] == [5, 5, 2]
    assert all(packing.pack_of(job) == i // 5 for i, job in enumerate(jobs))


def test_a_pack_is_bounded_in_models_and_in_bytes() -> None:
    assert Packing(SweepConfig(widths=(64,), seeds=tuple(range(100)))).packs == 0
    many = tuple(range(2000))
    assert Packing(SweepConfig(widths=(64,), seeds=many, remainders=())).size == 256
    large = Packing(SweepConfig(widths=(64,), seeds=many, remainders=tuple(range(64))))
    assert 1 < large.size < 40
    assert large.packs == -(-2000 // large.size)


def test_a_sweep_in_packs_reads_as_one_of_loose_files(loose: Path, packed: Path) -> None:
    names = ["packs/000000.zip", "packs/000001.zip", "packs/000002.zip"]
    assert [n for n in files(packed) if n.startswith(("packs", "models"))] == names
    assert "packs/000000.zip" not in files(loose)
    theirs, ours = bilinear.load_results(loose), bilinear.load_results(packed)
    assert ours.complete
    assert ours.jobs == theirs.jobs
    assert ours.table.equals(theirs.table)
    for job in theirs.jobs:
        for name, tensor in theirs.models[job].items():
            assert torch.equal(ours.models[job][name], tensor)
        assert ours.histories[job].equals(theirs.histories[job])
        assert torch.equal(ours.interactions[job], theirs.interactions[job])
    for name in ("table.parquet", "summary.json", "accuracy.png", "interactions.png"):
        assert filecmp.cmp(loose / name, packed / name, shallow=False)


def test_a_zip_tool_unpacks_a_pack(loose: Path, packed: Path, tmp_path: Path) -> None:
    for pack in (packed / "packs").iterdir():
        zipfile.ZipFile(pack).extractall(tmp_path / "apart")
    for file in (loose / "models").iterdir():
        assert filecmp.cmp(file, tmp_path / "apart" / file.name, shallow=False)


@pytest.mark.parametrize("killed", ["before packing", "before deleting", "early"])
def test_killed_anywhere_it_ends_with_the_same_bits(
    loose: Path, packed: Path, tmp_path: Path, killed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = tmp_path / "begun"
    shutil.copytree(packed, begun)
    (begun / "table.parquet").unlink()
    (begun / "models").mkdir()
    first = packs.Packing(bilinear.load_results(packed).config).jobs(0)
    kept = first[:2] if killed == "early" else first
    for job in kept:
        name = f"models/{packs.model_file(job)}"
        shutil.copy(loose / name, begun / name)
    if killed != "before deleting":
        (begun / "packs" / "000000.zip").unlink()
    unfinished = bilinear.load_results(begun)
    assert len(unfinished.jobs) == (9 if killed == "early" else 12)
    assert len(unfinished.table) == len(unfinished.jobs)
    capsys.readouterr()
    run(begun)
    assert f"{len(unfinished.jobs)} models are there from before" in capsys.readouterr().out
    assert files(begun) == files(packed)
    assert filecmp.cmpfiles(begun, packed, files(packed), shallow=False)[0] == files(packed)


@pytest.mark.parametrize("seconds", [-1.0, 1e9])
def test_holding_models_changes_no_bit(
    packed: Path, tmp_path: Path, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    write = LocalFolder.write

    def noted(self: LocalFolder, name: str, content: bytes) -> None:
        written.append(name.partition("/")[0])
        write(self, name, content)

    monkeypatch.setattr(results_writer, "_HOLD_SECONDS", seconds)
    monkeypatch.setattr(LocalFolder, "write", noted)
    ours = run(tmp_path / "ours")
    assert files(ours) == files(packed)
    assert filecmp.cmpfiles(ours, packed, files(packed), shallow=False)[0] == files(packed)
    assert written.count("packs") == 3
    # Each pack's last model never needs a file of its own.
    assert written.count("models") == (9 if seconds < 0 else 0)


def test_a_run_that_is_stopped_keeps_every_model_that_ended(packing: None, tmp_path: Path) -> None:
    config = SweepConfig(p=5, widths=(4, 3, 2, 1), seeds=(0, 1, 2), steps=40, remainders=())
    ended: list[Job] = []

    def stop(event: object) -> None:
        if isinstance(event, Finished):
            ended.append(event.job)
            if len(ended) == 7:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(config, choose(config, fused=True, device="cpu"), tmp_path / "run", stop)
    assert sorted(bilinear.load_results(tmp_path / "run").jobs) == sorted(ended)


def test_a_damaged_pack_is_named(packed: Path) -> None:
    pack = packed / "packs" / "000001.zip"
    content = bytearray(pack.read_bytes())
    content[len(content) // 2] ^= 1
    pack.write_bytes(content)
    results = bilinear.load_results(packed)
    with pytest.raises(ResultsError, match=r"packs/000001\.zip: damaged"):
        list(results.models.values())
    pack.write_bytes(content[:100])
    with pytest.raises(ResultsError, match=r"packs/000001\.zip: damaged"):
        bilinear.load_results(packed).models[3, 2]


def test_opening_and_one_model_read_little(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening reads no model's file, and a model's weights are read without the whole pack."""
    read: list[str] = []
    for method in ("open", "read_all"):
        original = getattr(LocalFolder, method)

        def counted(self: LocalFolder, name: str, *more: Any, original: Any = original) -> Any:
            read.append(name)
            return original(self, name, *more)

        monkeypatch.setattr(LocalFolder, method, counted)
    results = bilinear.load_results(packed)
    assert read == ["SHA256SUMS", "config.json", "environment.json"]
    assert len(results.table) == 12
    assert read[3:] == ["table.parquet"]
    assert results.models[3, 1]["projection.weight"].shape == (5, 3)
    assert read[4:] == ["packs/000000.zip"]
    assert results.models[3, 0]["projection.weight"].shape == (5, 3)
    assert read[5:] == []
