"""The tests and a sweep under other versions.

    python -m bench.versions oldest=python3.12 latest=python3.13

Run before a release. Each set gets a virtual environment of its own, with the interpreter that is
named; `oldest` takes the oldest PyTorch that setup.py allows, `latest` the newest of everything.
A small fused sweep is then trained, shown and checked by the installed package. Counts and versions
go to bench/results/versions.json; a set that was not asked for keeps its last ones.
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
# Triton 3.6, which PyTorch 2.11 asks for, has an interpreter that no later NumPy runs.
SETS = {"oldest": ["torch==2.11.*", "numpy<2.4"], "latest": []}
_TESTS = ["tests/layer", "tests/results"]
_NEEDED = ["pytest", "hypothesis", "setuptools"]
_SHOWN = ("torch", "triton", "numpy", "pandas", "pyarrow", "safetensors", "einops")


_SWEEP = ["--fused", "--p", "23", "--widths", "16..13", "--seeds", "2", "--quiet"]


def tried(
    python: str, pins: list[str], tests: list[str], kept: Path | None = None
) -> dict[str, Any]:
    """Install one set and run the tests with it; returns versions and counts.

    The environment is made in a folder that is removed, or in `kept`, unless it is there.
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
        said = subprocess.run([here, "-V"], capture_output=True, text=True, check=True).stdout
    print(done.stdout[-3000:], done.stderr[-2000:])
    return {
        "python": said.split()[1],
        "versions": {name: named[name] for name in _SHOWN if name in named},
        "tests": tests,
        **counts(done.stdout),
        "sweep": swept,
        "commit": environment()["commit"],
        "did not pass": re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)[:50],
    }


def sweep(python: str, scratch: Path) -> str:
    """Train, show and check a small sweep by the installed package; says what `check` says."""
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
    """Read pytest's last line."""
    last = output.strip().rpartition("\n")[2]
    kinds = ("passed", "failed", "skipped", "error")
    return {kind: sum(map(int, re.findall(rf"(\d+) {kind}", last))) for kind in kinds}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.versions", description=__doc__)
    parser.add_argument("sets", nargs="+", metavar="SET=PYTHON", help=f"of {', '.join(SETS)}")
    parser.add_argument("--tests", nargs="+", default=_TESTS)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="environments stay there")
    args = parser.parse_args()
    chosen = [text.partition("=") for text in args.sets]
    if any(name not in SETS or not python for name, _, python in chosen):
        parser.error(f"expected SET=PYTHON, SET one of {', '.join(SETS)}, got {args.sets}")
    found = {
        name: tried(python, SETS[name], args.tests, args.keep and args.keep / name)
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
