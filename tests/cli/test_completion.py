"""Completion by Tab, in the way of bash: the line in the environment, words by a descriptor."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("argcomplete")
BASH_READS = "import os, sys; os.dup2(1, 8); os.dup2(2, 9); sys.argv = ['bilinear']\n"


def offered(line: str, folder: Path) -> list[str]:
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line.encode())),
    }
    done = subprocess.run(
        [sys.executable, "-c", BASH_READS + "from bilinear.cli.start import main; main()"],
        env=os.environ | asked | {"PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "backend" not in done.stdout + done.stderr  # nothing is trained
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("bilinear --fu", ["--fused"]),
        ("bilinear --preset ", ["default", "notebook"]),
        ("bilinear --fused --p 59 --schedule c", ["constant", "cosine"]),
        ("bilinear v", ["view"]),
        ("bilinear view r", ["runs/"]),
        ("bilinear view --fu", []),
    ],
)
def test_tab(line: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    assert offered(line, tmp_path) == words
