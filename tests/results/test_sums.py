"""SHA256SUMS: written with the files, checked by `sha256sum`, and refused if damaged."""

import subprocess
from pathlib import Path

import pytest

from bilinear.errors import ResultsError
from bilinear.results.folder import LocalFolder
from bilinear.results.sums import SUMS, digest, encode_sums, read_sums, verified, write_summed


def test_sha256sum_agrees(whole: Path) -> None:
    subprocess.run(["sha256sum", "-c", SUMS], cwd=whole, check=True, stdout=subprocess.DEVNULL)


def test_files_and_their_digests(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path)
    assert read_sums(folder) is None
    write_summed(folder, {"config.json": b"one", "summary.json": b"two"}, last="config.json")
    write_summed(folder, {"config.json": b"uno"})
    sums = read_sums(folder)
    assert sums == {"config.json": digest(b"uno"), "summary.json": digest(b"two")}
    assert verified(sums, "config.json", b"uno")
    assert not verified(sums, "config.json", b"one")
    assert not verified(sums, "table.parquet", b"uno")
    assert not verified(None, "config.json", b"uno")


OTHER_NAME = b"0" * 64 + b"  bonfig.json\n"
DAMAGED = [b"x", b"\xff" * 64, b"0" * 63 + b"  config.json\n", OTHER_NAME, b"0" * 2**17]


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_digests_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SUMS).write_bytes(content)
    with pytest.raises(ResultsError, match=SUMS):
        read_sums(LocalFolder(tmp_path))
    write_summed(LocalFolder(tmp_path), {"config.json": b"one"})
    assert read_sums(LocalFolder(tmp_path)) == {"config.json": digest(b"one")}


def test_the_order_of_names_does_not_matter() -> None:
    assert encode_sums({"b": "1", "a": "2"}) == encode_sums({"a": "2", "b": "1"})
