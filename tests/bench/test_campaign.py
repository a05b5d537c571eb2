"""A short run of `bench.campaign` with a new seed each time; a failure shows seed and cases."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.campaign.damages import kind_of_file

ROOT = Path(__file__).parents[2]


def test_no_case_of_a_short_run_goes_wrong() -> None:
    short = [
        "--kills", "8", "--pairs", "4", "--damages", "12", "--flips", "50", "--commands", "60",
        "--calls", "700",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "bench.campaign", *short, "--no-store", "--no-result"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("seed ")
    assert done.stdout.endswith("0 went wrong\n")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("d016-s0003.safetensors", ".safetensors"),
        ("000009.zip", ".zip"),
        ("study.json", "study.json"),
        ("sessions.json", "sessions.json"),
    ],
)
def test_damages_are_counted_by_kind_of_file(name: str, kind: str) -> None:
    assert kind_of_file(name) == kind
