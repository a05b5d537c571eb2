"""Seals: no byte of a model's file can change unnoticed."""

import random
from pathlib import Path

import pytest
from folders import flip

import bilinear
from bilinear.errors import ResultsError
from bilinear.experiment.record import Job
from bilinear.results.seal import (
    Damaged,
    claimed_origin,
    encode_sealed,
    tensors_of,
    verified_row,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def content(whole: Path) -> bytes:
    return (whole / "models" / "d003-s0001.safetensors").read_bytes()


def test_a_sealed_file_says_its_row_and_its_origin(whole: Path, content: bytes) -> None:
    results = bilinear.load_results(whole)
    assert isinstance(results, bilinear.Results)
    row = verified_row(content, Job(3, 1), results.origin)
    assert (row["d_hidden"], row["seed"], row["steps"]) == (3, 1, 40)
    assert claimed_origin(content) == results.origin
    assert encode_sealed(tensors_of(content), row, results.origin) == content


@pytest.mark.parametrize("tenth", range(10))
def test_no_flipped_bit_goes_unnoticed(content: bytes, tenth: int) -> None:
    """Every byte in turn, a random bit of it."""
    origin = claimed_origin(content)
    for place in range(tenth, len(content), 10):
        damaged = bytearray(content)
        damaged[place] ^= 1 << random.randrange(8)
        with pytest.raises(Damaged):
            verified_row(bytes(damaged), Job(3, 1), origin)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, -1])
def test_no_cut_goes_unnoticed(content: bytes, length: int) -> None:
    with pytest.raises(Damaged):
        verified_row(content[:length], Job(3, 1), None)
    with pytest.raises(Damaged):
        verified_row(content + b"\0", Job(3, 1), None)


def test_another_job_and_another_sweep_are_named(content: bytes) -> None:
    with pytest.raises(Damaged, match="it holds width 3, seed 1"):
        verified_row(content, Job(3, 2), None)
    with pytest.raises(Damaged, match="it is of another sweep"):
        verified_row(content, Job(3, 1), "0" * 32)


def test_a_committed_folder_of_an_earlier_version_still_reads() -> None:
    results = bilinear.load_results(ROOT / "docs" / "findings" / "results")
    assert isinstance(results, bilinear.Results)
    assert not results.has_digests
    assert len(results.table) == len(results.models) > 0
    job = results.jobs[0]
    assert results.models[job]["projection.weight"].shape == (64, job.d_hidden)


def test_a_read_of_a_flipped_model_is_an_error_and_never_other_weights(
    whole: Path, tmp_path: Path
) -> None:
    import shutil

    out = shutil.copytree(whole, tmp_path / "run")
    flip(out / "models" / "d002-s0000.safetensors", -3)
    results = bilinear.load_results(out)
    assert isinstance(results, bilinear.Results)
    for read in (results.models, results.histories, results.interactions):
        with pytest.raises(ResultsError, match=r"d002-s0000\.safetensors: damaged"):
            read[2, 0]
    assert len(results.table) == 12
