"""Claims: one process at a time fills a folder, however the last one ended."""

import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from folders import SWEEP, files, run, same

from bilinear.errors import ResultsError
from bilinear.results import claim as claims
from bilinear.results.claim import Claimed, claim, is_claim
from bilinear.results.folder import Folder, LocalFolder, UrlFolder, open_folder

HOLD = """
import sys, time
from bilinear.results.claim import claim
from bilinear.results.folder import open_folder
with claim(open_folder(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the folder `run`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_with_the_name_of_the_first(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    with pytest.raises(Claimed) as refused, claim(open_folder(tmp_path / "run")):
        pass
    assert f"is being filled by process {holder.pid} on {platform.node()}" in str(refused.value)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert files(tmp_path / "run") == ["owner.lock"]
    with claim(open_folder(tmp_path / "run")):
        pass
    assert files(tmp_path / "run") == []


def test_a_folder_made_for_the_claim_alone_is_removed_and_others_stay(tmp_path: Path) -> None:
    with claim(open_folder(tmp_path / "new")):
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    with claim(open_folder(tmp_path / "mine")):
        pass
    assert (tmp_path / "mine").is_dir()


def test_a_cell_is_held_with_its_study(tmp_path: Path) -> None:
    study = LocalFolder(tmp_path)
    study.write("study.json", b"{}")
    with claim(study), pytest.raises(Claimed), claim(study.child("cells/p5")):
        pass
    with claim(study.child("cells/p5")), pytest.raises(Claimed), claim(study):
        pass


def test_four_processes_at_once_enter_one_at_a_time(tmp_path: Path) -> None:
    """Each process claims the folder again and again, and finds no other inside."""
    script = """
import os, sys, time
from bilinear.results.claim import Claimed, claim
from bilinear.results.folder import open_folder
inside, deadline = sys.argv[2], time.monotonic() + 2.0
entered = 0
while time.monotonic() < deadline:
    try:
        with claim(open_folder(sys.argv[1])):
            descriptor = os.open(inside, os.O_CREAT | os.O_EXCL)
            os.close(descriptor)
            entered += 1
            os.unlink(inside)
    except Claimed:
        pass
print(entered)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "run"), str(tmp_path / "inside")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    entered = [int(p.communicate()[0]) for p in processes]
    assert [p.returncode for p in processes] == [0] * 4
    assert sum(entered) > 100


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_RENEWED_EVERY", 0.05)
    monkeypatch.setattr(claims, "_GONE_AFTER", 1.0)
    monkeypatch.setattr(claims, "_SETTLES_IN", 0.2)


class Overwriting(UrlFolder):
    """A store that cannot refuse to overwrite."""

    def create(self, name: str, content: bytes) -> bool:
        self.write(name, content)
        return True


def in_memory(kind: type[UrlFolder] = UrlFolder) -> Folder:
    return kind.at(f"memory://claim-{time.monotonic_ns()}")


def lease(folder: Folder, **changed: Any) -> None:
    owner = {
        "pid": os.getpid(), "host": platform.node(), "processes": claims._processes(),
        "since": "then", "token": "theirs", "renewed": time.time(),
    }  # fmt: skip
    folder.write("owner-000007.json", json.dumps(owner | changed).encode())


@pytest.mark.parametrize("kind", [UrlFolder, Overwriting])
def test_a_lease_keeps_others_out_and_is_deleted(quick: None, kind: type[UrlFolder]) -> None:
    folder = in_memory(kind)
    with claim(folder) as held:
        for _ in range(2):
            with pytest.raises(Claimed, match=f"process {os.getpid()}"), claim(folder):
                pass
            time.sleep(1.1)  # for longer than a lease lasts unrenewed
        held.check()
        assert all(map(is_claim, folder.names()))
    assert folder.names() == []


def test_a_lease_whose_process_is_gone_is_taken_over_at_once(quick: None) -> None:
    folder, gone = in_memory(), subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    lease(folder, pid=gone.pid)
    with claim(folder):
        assert folder.names() == ["owner-000007.json", "owner-000008.json"]
    assert folder.names() == []


@pytest.mark.parametrize("renewed", [0.0, 4e9])
def test_a_lease_of_another_machine_is_watched_before_it_is_believed_dead(
    quick: None, renewed: float
) -> None:
    """By its clock it was renewed long ago, or will be in the future: neither is believed."""
    folder = in_memory()
    lease(folder, host="elsewhere", renewed=renewed)
    started = time.monotonic()
    with claim(folder):
        assert time.monotonic() - started >= 1.0
    lease(folder, host="elsewhere")
    with pytest.raises(Claimed, match="on elsewhere"), claim(folder):
        pass


def test_a_process_whose_lease_was_taken_over_stops(quick: None) -> None:
    folder = in_memory()
    with claim(folder) as held:
        folder.write("owner-000009.json", b"another")
        time.sleep(1.0)
        with pytest.raises(ResultsError, match="another process has taken it over"):
            held.check()
    assert "owner-000009.json" in folder.names()


@pytest.mark.parametrize("damage", [{"pid": 10**30, "renewed": 0.0}, {"renewed": 10**400}])
def test_a_lease_of_impossible_numbers_is_watched_too(quick: None, damage: dict[str, Any]) -> None:
    folder = in_memory()
    lease(folder, **damage)
    with claim(folder):
        pass
    assert folder.names() == []


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"pid": 1}'])
def test_a_damaged_lease_is_watched_too(quick: None, content: bytes) -> None:
    folder = in_memory()
    folder.write("owner-000001.json", content)
    with claim(folder):
        pass
    assert folder.names() == []


def started(out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "sweep.py", *SWEEP, *more, "--out", str(out)]
    return subprocess.Popen(
        command, cwd=Path(__file__).parents[2], text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("other", [[], ["--lr", "0.07"]])
def test_two_at_once_on_one_new_folder_do_not_mix(
    tmp_path: Path, whole: Path, other: list[str]
) -> None:
    out = tmp_path / "run"
    pair = [started(out), started(out, *other)]
    errors = [p.communicate()[1] for p in pair]
    codes = [p.returncode for p in pair]
    assert set(codes) <= {0, 2}, errors
    for code, error in zip(codes, errors, strict=True):
        assert (code == 0) == (error == "")
        assert error.count("\n") == (code != 0)
        assert code == 0 or "is being filled by" in error or "belongs to another config" in error
    assert 0 in codes
    alone = whole
    if codes[0] != 0:
        alone = tmp_path / "alone"
        assert run(alone, *other) == 0
    assert same(out, alone)


def test_a_wrong_command_touches_nothing(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("config.json.0123abcd.partial", "a.partial", "sub.partial"):
        (tmp_path / "mine" / name).write_bytes(b"mine")
    before = {f: f.stat().st_mtime_ns for f in whole.rglob("*")}
    assert run(whole, "--lr", "0.07") == 2
    assert run(tmp_path / "mine") == 2
    assert "'a.partial'" in capsys.readouterr().err
    assert len(list((tmp_path / "mine").iterdir())) == 3
    assert {f: f.stat().st_mtime_ns for f in whole.rglob("*")} == before


def test_without_locks_it_is_a_lease(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer: Callable[[int], bool | None] = lambda descriptor: None  # noqa: E731
    monkeypatch.setattr(claims, "_try_lock", answer)
    folder = open_folder(tmp_path / "run")
    for _ in itertools.repeat(None, 2):
        with claim(folder):
            assert folder.names() == ["owner-000001.json"]
            with pytest.raises(Claimed), claim(folder):
                pass
    assert folder.names() == []


@pytest.mark.parametrize("what", ["link", "folder"])
def test_a_lock_that_is_no_file_is_one_line(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock, elsewhere = tmp_path / "run" / claims.LOCK, tmp_path / "elsewhere"
    lock.parent.mkdir()
    elsewhere.write_text("a user's own")
    lock.symlink_to(elsewhere) if what == "link" else lock.mkdir()
    assert run(tmp_path / "run") == 2
    assert f"expected the file of a lock, got a {what}\n" in capsys.readouterr().err
    assert elsewhere.read_text() == "a user's own"
