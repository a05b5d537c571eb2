"""Runs the tests and a sweep with the oldest and the newest versions of the dependencies.

    python -m bench.versions oldest=python3.12 latest=python3.13

Run before a release. Each set of versions is installed in a virtual environment of its own, with
the given interpreter; `oldest` has the oldest PyTorch that setup.py allows, `latest` the newest
version of everything. Then the installed package trains, shows and checks a small fused sweep.
Counts and versions are written to bench/results/versions.json; other sets in the file are kept.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.measure.environment import RESULTS, environment, write_result

ROOT = Path(__file__).parents[1]
# PyTorch 2.11 needs Triton 3.6, whose interpreter does not run with later versions of NumPy.
SETS = {"oldest": ["torch==2.11.*", "numpy<2.4"], "latest": []}
_TESTS = ["tests/layer", "tests/results"]
_NEEDED = ["pytest", "hypothesis", "setuptools"]
_SHOWN = ("torch", "triton", "numpy", "pandas", "pyarrow", "safetensors", "einops")
_SWEEP = ["--fused", "--p", "23", "--widths", "16..13", "--seeds", "2", "--quiet"]


def install_and_test(
    python: str, pins: list[str], tests: list[str], kept: Path | None = None
) -> dict[str, Any]:
    """Install one set and run the tests with it; returns versions and counts.

    The virtual environment is made in `kept`, or used if it is there already; without `kept`, in a
    temporary folder.
    """
    with tempfile.TemporaryDirectory(prefix="versions-") as temporary:
        folder = temporary if kept is None else str(kept)
        here = str(Path(folder) / "bin" / "python")
        if not Path(here).exists():
            subprocess.run([python, "-m", "venv", folder], check=True)
        pip = [here, "-m", "pip", "install", "-q", "--upgrade"]
        subprocess.run([*pip, f"{ROOT}[sweep]", *_NEEDED, *pins], check=True)
        command = [here, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line", *tests]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        versions = subprocess.run(
            [here, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True
        )
        named = {entry["name"]: entry["version"] for entry in json.loads(versions.stdout)}
        swept = sweep(here, Path(temporary))
        version = subprocess.run([here, "-V"], capture_output=True, text=True, check=True).stdout
    print(done.stdout[-3000:], done.stderr[-2000:])
    return {
        "python": version.split()[1],
        "versions": {name: named[name] for name in _SHOWN if name in named},
        "tests": tests,
        **counts(done.stdout),
        "sweep": swept,
        "commit": environment()["commit"],
        "did not pass": re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)[:50],
    }


def sweep(python: str, scratch: Path) -> str:
    """Train, show and check a sweep with the installed package; returns the output of `check`."""
    out = str(scratch / "run")
    for arguments in ([*_SWEEP, "--out", out], ["show", out], ["check", out]):
        done = subprocess.run(
            [python, "-m", "bilinear", *arguments],
            cwd=scratch, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0 or done.stderr:
            return f"{arguments[0]} ended with {done.returncode}: {done.stderr[-500:]}"
    return done.stdout.strip()


def counts(output: str) -> dict[str, int]:
    """Return the counts in the last line of pytest's output."""
    last = output.strip().rpartition("\n")[2]
    kinds = ("passed", "failed", "skipped", "error")
    return {kind: sum(map(int, re.findall(rf"(\d+) {kind}", last))) for kind in kinds}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.versions", description=__doc__)
    parser.add_argument("sets", nargs="+", metavar="SET=PYTHON", help=f"of {', '.join(SETS)}")
    parser.add_argument("--tests", nargs="+", default=_TESTS)
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FOLDER",
        help="make the virtual environments there, and keep them",
    )
    args = parser.parse_args()
    chosen = [text.partition("=") for text in args.sets]
    if any(name not in SETS or not python for name, _, python in chosen):
        parser.error(f"expected SET=PYTHON, SET one of {', '.join(SETS)}, got {args.sets}")
    found = {
        name: install_and_test(python, SETS[name], args.tests, args.keep and args.keep / name)
        for name, _, python in chosen
    }
    before = RESULTS / "versions.json"
    earlier = json.loads(before.read_text()) if before.exists() else {}
    others = {name: earlier[name] for name in SETS if name in earlier and name not in found}
    print(f"wrote {write_result('versions', others | found)}")
    right = (
        one["passed"] and not one["failed"] + one["error"] and " 0 files are not" in one["sweep"]
        for one in found.values()
    )
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
