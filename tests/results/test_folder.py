"""Folders: local ones, and at a URL of an S3 server on loopback, killed, refused, unreachable."""

import filecmp
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import bilinear
from bilinear.cli.commands import main
from bilinear.errors import ConfigError
from bilinear.results.folder import LocalFolder, Unacceptable, UrlFolder, open_folder

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("s3fs", reason="needs s3fs")
pytest.importorskip("moto", reason="needs moto")

ROOT = Path(__file__).parents[2]
GRID = ["--fused", "--p", "11,13", "--widths", "9..6", "--steps", "1500", "--hold", "150"]
QUICK = ["--fused", "--p", "5", "--widths", "3,2", "--steps", "20"]
AWS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",
}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    url = f"http://127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", url.rpartition(":")[2]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{url}/moto-api/", timeout=5).close()
            break
        except OSError:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    yield url
    process.kill()
    process.wait()


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket's folder; the store's address and keys are in the environment."""
    for name, value in (AWS | {"AWS_ENDPOINT_URL": server}).items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{time.monotonic_ns()}"
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(bucket)
    return f"s3://{bucket}/some/where"


def download(url: str, to: Path) -> Path:
    fsspec.filesystem("s3", skip_instance_cache=True).get(url.rstrip("/"), str(to), recursive=True)
    return to


def files(path: Path) -> list[str]:
    """Names of all files but `sessions.json`, which differs between runs."""
    found = (f for f in path.rglob("*") if f.is_file() and f.name != "sessions.json")
    return sorted(str(f.relative_to(path)) for f in found)


def test_killed_and_started_again_it_ends_with_the_bits_of_a_local_run(
    s3: str, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "sweep.py", *GRID, "--out", s3],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    store = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
    deadline = time.monotonic() + 120
    while not store.glob(f"{s3}/cells/*/models/*.safetensors"):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not store.exists(f"{s3}/table.parquet")
    assert main([*GRID, "--out", s3, "--resume"]) == 0
    assert main([*GRID, "--out", str(tmp_path / "local")]) == 0
    there = download(s3, tmp_path / "there")
    names = files(tmp_path / "local")
    assert files(there) == names
    assert filecmp.cmpfiles(there, tmp_path / "local", names, shallow=False)[0] == names
    results = bilinear.load_results(s3)
    assert results.complete
    assert str(results.folder) == s3
    here = bilinear.load_results(tmp_path / "local")
    assert results.table.equals(here.table)
    assert results.cell(p=13).histories[7, 0].equals(here.cell(p=13).histories[7, 0])


def test_what_is_there_is_shown_and_packs_are_read(
    s3: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("bilinear.results.packs.LOOSE_MODELS", 5)
    monkeypatch.setattr("bilinear.results.packs.PACK_MODELS", 4)
    sweep = [*QUICK, "--seeds", "3"]
    assert main([*sweep, "--out", s3]) == 0
    assert main([*sweep, "--out", str(tmp_path / "local")]) == 0
    ours, theirs = bilinear.load_results(s3), bilinear.load_results(tmp_path / "local")
    assert len(ours.models) == 6
    for job, state in theirs.models.items():
        assert all(v.equal(state[k]) for k, v in ours.models[job].items())
    capsys.readouterr()
    assert main(["show", s3]) == 0
    assert f"results in {s3}" in capsys.readouterr().out
    page = tmp_path / "view.html"
    assert main(["view", s3, "--out", str(page)]) == 0
    assert page.stat().st_size > 10_000
    assert main(["view", s3]) == 2
    assert "expected a folder of this machine" in capsys.readouterr().err


def check_keys_after(server: str, requests: str) -> None:
    """Let the server check the keys of all requests after the first `requests`."""
    reset = urllib.request.Request(
        f"{server}/moto-api/reset-auth",
        data=requests.encode(),
        headers={"Content-Type": "text/plain"},
    )
    urllib.request.urlopen(reset, timeout=10).close()


def failed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_a_store_that_refuses_is_one_line(
    s3: str, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "s3://no-such-bucket-here" in failed(
        [*QUICK, "--out", "s3://no-such-bucket-here/x"], capsys
    )
    check_keys_after(server, "0")
    try:
        error = failed([*QUICK, "--out", s3], capsys)
    finally:
        check_keys_after(server, "inf")
    assert f"bilinear: {s3}" in error
    assert "Forbidden" in error or "Access Key" in error
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    fsspec.filesystem("s3").clear_instance_cache()
    error = failed([*QUICK, "--out", s3], capsys)
    assert f"bilinear: {s3}" in error
    assert "connect" in error


def test_unknown_places_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere" in failed([*QUICK, "--out", "nowhere://x"], capsys)
    with pytest.raises(ConfigError, match="nowhere"):
        bilinear.load_results("nowhere://x")


def test_any_fsspec_folder_holds_files_whole() -> None:
    folder = open_folder(f"memory://run-{time.monotonic_ns()}")
    assert isinstance(folder, UrlFolder)
    assert folder.names() == []
    assert not folder.exists("a")
    with pytest.raises(FileNotFoundError):
        folder.read("a")
    folder.write("sub/b", b"two")
    folder.write("a", b"one")
    folder.write("a", b"uno")
    assert folder.names() == ["a", "sub"]
    assert folder.child("sub").names() == folder.names("sub") == ["b"]
    assert folder.read_all(["sub/b", "a"]) == [b"two", b"uno"]
    with folder.open("sub/b") as file:
        file.seek(1)
        assert file.read() == b"wo"
    folder.delete(["a", "never"])
    assert folder.names() == ["sub"]


def test_a_file_url_is_a_folder_of_this_machine(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    assert main([*QUICK, "--out", f"file://{out}"]) == 0
    here, there = bilinear.load_results(out), bilinear.load_results(f"file://{out}")
    assert isinstance(here.folder, LocalFolder)
    assert there.table.equals(here.table)
    assert there.folder.path == out


def test_a_circle_of_links_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(Unacceptable, match="circle of links"):
        open_folder(tmp_path / "circle").names()


def test_a_link_out_of_a_folder_is_neither_read_nor_written_through(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a").write_bytes(b"one")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "sub").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "run" / "b").symlink_to(tmp_path / "elsewhere" / "a")
    folder = open_folder(tmp_path / "run")
    for attempt in (
        lambda: folder.read("sub/a"),
        lambda: folder.read("b"),
        lambda: folder.write("sub/c", b""),
        lambda: folder.create("sub/c", b""),
        lambda: folder.names("sub"),
    ):
        with pytest.raises(Unacceptable, match="got a link out of it"):
            attempt()
    assert [f.name for f in (tmp_path / "elsewhere").iterdir()] == ["a"]
    (tmp_path / "inside").symlink_to(tmp_path / "run")
    open_folder(tmp_path / "inside").write("a", b"one")
    assert (tmp_path / "run" / "a").read_bytes() == b"one"


def test_no_more_than_asked_for_is_read(tmp_path: Path) -> None:
    for folder in (open_folder(tmp_path), open_folder(f"memory://much-{time.monotonic_ns()}")):
        folder.write("a", b"0123")
        assert folder.read("a", 4) == b"0123"
        for read in (lambda f=folder: f.read("a", 3), lambda f=folder: f.read_all(["a"], 3)):
            with pytest.raises(Unacceptable, match="at most 3 bytes"):
                read()


def test_exclusive_creation_and_moving(tmp_path: Path) -> None:
    for folder in (open_folder(tmp_path), open_folder(f"memory://new-{time.monotonic_ns()}")):
        assert folder.create("a", b"one")
        assert not folder.create("a", b"two")
        assert folder.read("a") == b"one"
        folder.move("a", "aside/b")
        assert folder.names("aside") == ["b"]
        assert not folder.exists("a")


def test_a_local_file_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_folder(tmp_path / "run")
    assert isinstance(folder, LocalFolder)
    folder.write("sub/a", b"one")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*/run/sub/a'$"):
            folder.write("sub/a", b"two")
    assert folder.names("sub") == ["a"]
    assert folder.read("sub/a") == b"one"
    left = ["b.partial", "b.0123abcd.partial", "mine.partial", "mine.0123abcd.partial"]
    for name in left:
        (tmp_path / "run" / "sub" / name).write_bytes(b"ha")
    folder.sweep_up("sub", lambda name: name == "b")
    assert folder.names("sub") == ["a", *sorted(left[2:])]
