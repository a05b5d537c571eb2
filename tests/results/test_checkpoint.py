"""Checkpoints: the states written are the states read, and a damaged file is named."""

import random
from pathlib import Path

import pytest
import safetensors.torch
import torch

from bilinear.errors import ResultsError
from bilinear.experiment.record import Job
from bilinear.results.checkpoint import Checkpoint

JOBS = [Job(3, 0), Job(2, 2**40)]


def kept(folder: Path) -> dict[str, torch.Tensor]:
    state = {"weights": torch.randn(2, 3), "counters": torch.arange(4).reshape(2, 2)}
    Checkpoint(folder).write("d016", JOBS, state)
    return state


def test_every_job_has_its_row_of_the_state(tmp_path: Path) -> None:
    state = kept(tmp_path)
    found = Checkpoint(tmp_path).read()
    assert list(found) == JOBS
    for i, job in enumerate(JOBS):
        assert all(torch.equal(found[job][name], state[name][i]) for name in state)
    Checkpoint(tmp_path).forget("d016")
    assert not tmp_path.exists()


def test_a_flipped_bit_anywhere_is_an_error(tmp_path: Path) -> None:
    kept(tmp_path)
    file = tmp_path / "d016.safetensors"
    content = file.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << random.randrange(8)
        file.write_bytes(damaged)
        with pytest.raises(ResultsError, match=r"d016\.safetensors: damaged"):
            Checkpoint(tmp_path).read()


@pytest.mark.parametrize("jobs", ["[1]", "[[1, 2, 3]]", "null", "[" * 1000])
def test_a_file_with_other_metadata_is_named(tmp_path: Path, jobs: str) -> None:
    safetensors.torch.save_file(
        {"weights": torch.zeros(1, 2)}, tmp_path / "d016.safetensors", metadata={"sealed": jobs}
    )
    with pytest.raises(ResultsError, match=r"d016\.safetensors: damaged"):
        Checkpoint(tmp_path).read()
