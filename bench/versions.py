"""The tests under other versions: `python -m bench.versions oldest=python3.12 latest=python3.13`.

Run before a release. Each set gets a virtual environment of its own, with the interpreter that is
named; `oldest` takes the oldest PyTorch that setup.py allows, `latest` the newest of everything.
Counts and versions go to bench/results/versions.json.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.measure.environment import write_result

ROOT = Path(__file__).parents[1]
# Triton 3.6, which PyTorch 2.11 asks for, has an interpreter that no later NumPy runs.
SETS = {"oldest": ["torch==2.11.*", "numpy<2.4"], "latest": []}
_TESTS = ["tests/layer", "tests/results"]
_NEEDED = ["pytest", "hypothesis", "setuptools"]
_SHOWN = ("torch", "triton", "numpy", "pandas", "pyarrow", "safetensors", "einops")


def tried(python: str, pins: list[str], tests: list[str]) -> dict[str, Any]:
    """Install one set and run the tests with it; returns versions and counts."""
    with tempfile.TemporaryDirectory(prefix="versions-") as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        here = str(Path(folder) / "bin" / "python")
        pip = [here, "-m", "pip", "install", "-q", "--upgrade"]
        subprocess.run([*pip, f"{ROOT}[sweep]", *_NEEDED, *pins], check=True)
        command = [here, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line", *tests]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        versions = subprocess.run(
            [here, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True
        )
        named = {entry["name"]: entry["version"] for entry in json.loads(versions.stdout)}
        said = subprocess.run([here, "-V"], capture_output=True, text=True, check=True).stdout
    print(done.stdout[-3000:], done.stderr[-2000:])
    return {
        "python": said.split()[1],
        "versions": {name: named[name] for name in _SHOWN if name in named},
        "tests": tests,
        **counts(done.stdout),
        "did not pass": re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)[:50],
    }


def counts(output: str) -> dict[str, int]:
    """Read pytest's last line."""
    last = output.strip().rpartition("\n")[2]
    kinds = ("passed", "failed", "skipped", "error")
    return {kind: sum(map(int, re.findall(rf"(\d+) {kind}", last))) for kind in kinds}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.versions", description=__doc__)
    parser.add_argument("sets", nargs="+", metavar="SET=PYTHON", help=f"of {', '.join(SETS)}")
    parser.add_argument("--tests", nargs="+", default=_TESTS)
    args = parser.parse_args()
    chosen = [text.partition("=") for text in args.sets]
    if any(name not in SETS or not python for name, _, python in chosen):
        parser.error(f"expected SET=PYTHON, SET one of {', '.join(SETS)}, got {args.sets}")
    found = {name: tried(python, SETS[name], args.tests) for name, _, python in chosen}
    print(f"wrote {write_result('versions', found)}")
    return (
        1
        if any(one["failed"] or one["error"] or not one["passed"] for one in found.values())
        else 0
    )


if __name__ == "__main__":
    sys.exit(main())
