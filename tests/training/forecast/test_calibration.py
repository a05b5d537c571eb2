"""The measured rate of a backend, and the cache that stores it."""

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import bilinear
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.cost import work_of_step
from bilinear.experiment.record import Finished, Progress, Record, Weights
from bilinear.training.backend import Work, train
from bilinear.training.choose import choose
from bilinear.training.forecast import calibration
from bilinear.training.forecast.calibration import (
    Calibration,
    calibrate,
)
from bilinear.training.forecast.rate_cache import cache_folder, read, write

SLEEP = 0.02  # seconds a call, whatever the work


class Counting:
    """A backend that sleeps instead of training, and counts the models it should train."""

    name, reason = "counting", "of the tests"

    def __init__(self, at_once: int = 2) -> None:
        self.at_once = at_once
        self.asked = 0

    def train(self, work: Sequence[Work]) -> Iterator[tuple[int, Progress | Finished]]:
        (one,) = work
        self.asked += len(one.jobs)
        time.sleep(SLEEP)
        for job in one.jobs:
            record = Record(one.config)
            record.add(one.config.steps, 0, 0, 0, 0, 0)
            yield 0, Finished(job, record, Weights(*(torch.zeros(1),) * 3))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and timings that end at once."""
    monkeypatch.setenv("BILINEAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration, "_LEAST_SECONDS", SLEEP / 2)
    monkeypatch.setattr(calibration, "_TIMINGS", 1)
    return tmp_path / "cache"


def cell(p: int = 7, **more: object) -> SweepConfig:
    return replace(SweepConfig(p=p, widths=(p, 1), remainders=()), **more)


def test_between_points_linear_and_outside_proportional() -> None:
    config = cell()
    works = [work_of_step(config, d) for d in (2, 4)]
    rate = Calibration(1, "", ((works[0], 1.0), (works[1], 2.0)), "")
    found = [rate.step_seconds(config, d) for d in (2, 3, 4)]
    assert found == pytest.approx([1.0, 1.5, 2.0])
    for d, (work, seconds) in ((1, rate.points[0]), (7, rate.points[1])):
        assert rate.step_seconds(config, d) == pytest.approx(
            seconds * work_of_step(config, d) / work
        )


def test_a_smaller_modulus_takes_the_rate_of_the_work_it_does() -> None:
    rate = Calibration(1, "", ((1e3, 1e-6), (1e9, 1.0)), "")
    assert rate.step_seconds(cell(11), 3) == pytest.approx(work_of_step(cell(11), 3) / 1e9)


def test_the_second_time_nothing_is_measured(folder: Path) -> None:
    backend, cells = Counting(), [cell(7), cell(11)]
    assert calibrate(backend, cells, measure=False) is None
    assert backend.asked == 0
    first = calibrate(backend, cells)
    assert first is not None
    assert (first.at_once, first.source) == (2, "measured now")
    assert first.step_seconds(cells[1], 11) == pytest.approx(SLEEP / 10, rel=0.5)
    asked = backend.asked
    assert asked > 0
    for measure in (True, False):
        again = calibrate(backend, cells, measure=measure)
        assert again == replace(first, source="measured before")
    assert backend.asked == asked
    assert len(list(folder.glob("*.json"))) == len(list(folder.iterdir())) == 1


def test_the_largest_modulus_is_measured(folder: Path) -> None:
    calibrate(Counting(), [cell(7), cell(13), cell(11)])
    calibrate(Counting(), [cell(13, batch_size=4)])
    keys = [json.loads(file.read_text())["key"] for file in folder.iterdir()]
    assert sorted((key["p"], key["batch"]) for key in keys) == [("13", "0"), ("13", "4")]


@pytest.mark.parametrize("what", ["name", "reason", "at_once", "torch", "bilinear", "processor"])
def test_another_machine_or_version_is_measured_anew(
    what: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Counting()
    calibrate(backend, [cell()])
    if what in ("name", "reason", "at_once"):
        monkeypatch.setattr(backend, what, 3 if what == "at_once" else "other", raising=False)
    elif what == "processor":
        monkeypatch.setattr(calibration, "processor", lambda _: "other")
    else:
        monkeypatch.setattr({"torch": torch, "bilinear": bilinear}[what], "__version__", "9.9")
    again = calibrate(backend, [cell()])
    assert again is not None
    assert again.source == "measured now"
    assert len(list(folder.iterdir())) == 2


KEY = {"p": "7"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"{}",
        *(
            json.dumps({"key": KEY, "points": points}).encode()
            for points in (
                [],
                3,
                [1],
                [[1, "x"]],
                [[0, 1]],
                [[1, -1]],
                [[1, math.nan]],
                [[1, 1], [math.inf, 1]],
            )
        ),
    ],
)
def test_a_damaged_file_is_not_read_but_replaced(content: bytes, folder: Path) -> None:
    write(KEY, ((1.0, 2.0),))
    assert read(KEY) == ((1.0, 2.0),)
    (file,) = folder.iterdir()
    file.write_bytes(content)
    assert read(KEY) is None
    write(KEY, ((1.0, 3.0),))
    assert read(KEY) == ((1.0, 3.0),)


@pytest.mark.parametrize("place", ["a file/cache", "/proc/nothing", "unreadable"])
def test_a_folder_that_cannot_be_used_means_measuring_each_time(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("BILINEAR_CACHE", str(tmp_path / place))
    if place == "unreadable":  # the superuser can read every folder
        monkeypatch.setattr(Path, "read_bytes", _refuse)
        monkeypatch.setattr(Path, "mkdir", _refuse)
    for _ in range(2):
        found = calibrate(Counting(), [cell()])
        assert found is not None
        assert found.source == "measured now"


def _refuse(*_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_a_full_disk_leaves_no_half_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert calibrate(Counting(), [cell()]) is not None
    assert list(folder.iterdir()) == []


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BILINEAR_CACHE", "/somewhere/of/mine")
    assert cache_folder() == Path("/somewhere/of/mine")
    monkeypatch.delenv("BILINEAR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/bilinear")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == Path("/home/somebody/.cache/bilinear")


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("BILINEAR_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    found = calibrate(Counting(), [cell()])
    assert found is not None
    assert found.source == "measured now"


class Elsewhere(Counting):
    """Returns the number of cells as its processor's name, without measuring."""

    def calibrate(self, cells: Sequence[SweepConfig]) -> Calibration | None:
        return Calibration(1, f"{len(cells)}", ((1.0, 1.0),), "there", devices=5)


def test_a_backend_that_trains_elsewhere_measures_there(folder: Path) -> None:
    backend = Elsewhere()
    found = calibrate(backend, [cell()])
    assert found is not None
    assert (found.processor, found.devices) == ("1", 5)
    assert calibrate(backend, [cell()], measure=False) is None
    assert backend.asked == 0
    assert not folder.exists()


def test_out_of_time_no_wider_model_is_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "_BUDGET_SECONDS", 0.0)
    found = calibrate(Counting(), [cell(7)])
    assert found is not None
    assert [work for work, _ in found.points] == [work_of_step(cell(7), 1)]
    assert found.step_seconds(cell(7), 3) > 0


def test_steps_too_long_to_be_measured() -> None:
    backend = Counting()
    assert calibrate(backend, [cell(1009)]) is None
    assert backend.asked == 0


def test_the_rate_of_a_true_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """It predicts a run's time to a factor of 8, in one of five tries: other processes disturb."""
    monkeypatch.setattr(calibration, "_LEAST_SECONDS", 0.02)
    monkeypatch.setattr(calibration, "_TIMINGS", 3)
    config = cell(13, widths=(13,), steps=3000, hold=10**6)
    backend = choose(config, fused=True, device="cpu", workers=1)
    ratios = []
    for _ in range(5):
        found = calibrate(backend, [config])
        assert found is not None
        start = time.perf_counter()
        assert len(list(train(backend, config))) >= 1
        taken = time.perf_counter() - start
        ratios.append(found.step_seconds(config, 13) * config.steps / taken)
        if 1 / 8 < ratios[-1] < 8:
            return
    pytest.fail(f"expected a ratio between 1/8 and 8, got {ratios}")
