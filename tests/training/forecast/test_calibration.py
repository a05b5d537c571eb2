"""The rate of a backend: its curves, and the cache that keeps them."""

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bilinear
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.cost import work_of_step
from bilinear.experiment.record import Finished, Progress, Record, Weights
from bilinear.training.backend import Work, train
from bilinear.training.choose import choose
from bilinear.training.forecast import calibration
from bilinear.training.forecast.calibration import (
    Calibration,
    Curve,
    calibrate,
    to_measure,
)
from bilinear.training.forecast.rate_cache import cache_folder, read, write

SLEEP = 0.02  # seconds a call, whatever the work


class Counting:
    """A backend that sleeps instead of training, and counts the models it was asked for."""

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
    monkeypatch.setattr(calibration, "_MEASURED_SECONDS", SLEEP)
    monkeypatch.setattr(calibration, "_TIMINGS", 1)
    return tmp_path / "cache"


def cell(p: int = 7, **more: object) -> SweepConfig:
    return replace(SweepConfig(p=p, widths=(p, 1), remainders=()), **more)


rises = st.lists(
    st.tuples(st.floats(1e-3, 1e3), st.floats(0, 1e-2)), min_size=1, max_size=6
)  # of work and of seconds, point to point


def curve(steps: list[tuple[float, float]], p: int = 7) -> Curve:
    work, seconds, points = 1.0, 1e-5, []
    for more_work, more_seconds in steps:
        work, seconds = work + more_work, seconds + more_seconds
        points.append((work, seconds))
    return Curve(p, tuple(points))


@given(rises, st.lists(st.floats(0.01, 1e5), min_size=2))
def test_a_curve_goes_through_its_points_and_never_falls(
    steps: list[tuple[float, float]], work: list[float]
) -> None:
    measured = curve(steps)
    for at, seconds in measured.points:
        assert measured.seconds(at) == pytest.approx(seconds)
    found = [measured.seconds(w) for w in sorted(work)]
    assert all(a <= b * (1 + 1e-12) for a, b in pairwise(found))


def test_between_points_linear_and_outside_proportional() -> None:
    measured = Curve(7, ((10.0, 1.0), (30.0, 2.0)))
    assert [measured.seconds(work) for work in (5, 20, 60)] == [0.5, 1.5, 4.0]


@given(st.integers(5, 60))
def test_a_modulus_between_two_lies_between_them(p: int) -> None:
    low, high = Curve(5, ((1e3, 1e-5), (1e8, 1e-3))), Curve(60, ((1e3, 2e-5), (1e8, 9e-3)))
    found = Calibration(1, "", {0: [high, low]}, "").step_seconds(cell(p), 3)
    work = work_of_step(cell(p), 3)
    assert low.seconds(work) * (1 - 1e-9) <= found <= high.seconds(work) * (1 + 1e-9)
    assert found == pytest.approx(
        low.seconds(work) * (high.seconds(work) / low.seconds(work)) ** (math.log(p / 5, 12))
    )


def test_the_second_time_nothing_is_measured(folder: Path) -> None:
    backend, cells = Counting(), [cell(7), cell(11), cell(7, batch_size=4)]
    first = calibrate(backend, cells)
    assert first is not None
    assert first.at_once == 2
    assert first.source == "measured now"
    assert first.step_seconds(cells[0], 7) == pytest.approx(SLEEP / 10, rel=0.5)
    asked = backend.asked
    assert asked > 0
    second = calibrate(backend, cells)
    assert backend.asked == asked
    assert second == replace(first, source="measured before")
    third = calibrate(backend, [*cells, cell(13)])
    assert third is not None
    assert third.source == "measured now and before"
    assert len(list(folder.glob("*.json"))) == len(list(folder.iterdir())) == 4


@pytest.mark.parametrize("what", ["name", "reason", "at_once", "torch", "bilinear", "processor"])
def test_another_machine_or_version_is_measured_anew(
    what: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Counting()
    calibrate(backend, [cell()])
    if what in ("name", "reason", "at_once"):
        monkeypatch.setattr(backend, what, 3 if what == "at_once" else "other", raising=False)
    elif what == "processor":
        monkeypatch.setattr(calibration, "_cpu", lambda: "other")
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
        json.dumps({"key": {"p": "11"}, "points": [[1, 1]]}).encode(),
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
                [[1, 1], [1, 2]],
                [[1, 2], [2, 1]],
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
    if place == "unreadable":  # no folder is to the superuser
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
    """Says what it was asked instead of measuring."""

    def calibrate(self, cells: Sequence[SweepConfig], budget_seconds: float) -> Calibration | None:
        return Calibration(1, f"{len(cells)} {budget_seconds}", {}, "there", devices=5)


def test_a_backend_that_trains_elsewhere_measures_there(folder: Path) -> None:
    backend = Elsewhere()
    found = calibrate(backend, [cell()], budget_seconds=1.5)
    assert found is not None
    assert (found.processor, found.devices) == ("1 1.5", 5)
    assert backend.asked == 0
    assert not folder.exists()


def test_few_of_many_moduli_are_measured() -> None:
    cells = [cell(p, batch_size=b) for p in range(40, 10, -1) for b in (0, 4)]
    chosen = to_measure(cells)
    assert [(c.batch_size, c.p) for c in chosen] == [
        (batch, p) for batch in (0, 4) for p in (11, 21, 30, 40)
    ]


def test_out_of_time_the_rest_is_left_to_neighbours() -> None:
    cells = [cell(p) for p in (7, 11, 13)]
    found = calibrate(Counting(), cells, budget_seconds=0)
    assert found is not None
    assert [c.p for c in found.curves[0]] == [7]
    assert found.step_seconds(cells[2], 3) > 0
    assert calibrate(Counting(), [*cells, cell(batch_size=4)], budget_seconds=0) is None


def test_steps_too_long_to_be_measured() -> None:
    backend = Counting()
    assert calibrate(backend, [cell(1009)]) is None
    assert backend.asked == 0


def test_the_rate_of_a_true_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run takes, give or take what a busy machine makes of it."""
    monkeypatch.setattr(calibration, "_MEASURED_SECONDS", 0.1)
    monkeypatch.setattr(calibration, "_TIMINGS", 3)
    config = cell(13, widths=(13,), steps=3000, hold=10**6)
    backend = choose(config, fused=True, device="cpu", workers=1)
    found = calibrate(backend, [config])
    assert found is not None
    start = time.perf_counter()
    assert len(list(train(backend, config))) >= 1
    taken = time.perf_counter() - start
    assert taken / 8 < found.step_seconds(config, 13) * config.steps < taken * 8
