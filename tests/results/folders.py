"""The folder of a small sweep, damage to its files, and a comparison of two folders."""

import filecmp
from pathlib import Path
from unittest import mock

from bilinear.cli.commands import main

# 12 models of a few kilobytes.
SWEEP = ["--fused", "--p", "5", "--widths", "4..1", "--seeds", "3", "--steps", "40"]


def run(out: Path | str, *more: str) -> int:
    """Run the sweep without its pictures, which take most of the time."""
    with mock.patch("bilinear.plots.save_summary"):
        return main([*SWEEP, "--out", str(out), *more])


def files(path: Path) -> list[str]:
    """Names of all files but pictures, `sessions.json`, and those that a resumed run set aside."""
    found = (f.relative_to(path) for f in path.rglob("*") if f.is_file())
    return sorted(
        str(f)
        for f in found
        if f.parts[0] != "set-aside" and f.suffix != ".png" and f.name != "sessions.json"
    )


def same(a: Path, b: Path) -> bool:
    names = files(a)
    return names == files(b) == filecmp.cmpfiles(a, b, names, shallow=False)[0]


def flip(file: Path, place: int, bit: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)
