"""Runs every part, prints the cases that went wrong, writes the counts."""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from bench.campaign.calls import calls
from bench.campaign.commands import commands
from bench.campaign.damages import damages
from bench.campaign.flips import flips
from bench.campaign.kills import kills
from bench.campaign.pairs import pairs
from bench.campaign.processes import warm_up
from bench.campaign.store import bucket
from bench.campaign.sweeps import Folders
from bench.measure.environment import RESULTS, write_result


class Part(NamedTuple):
    """One kind of attack; `cases` is their default number, `unit` its key in the results."""

    run: Callable[[random.Random, Folders, int], dict[str, Any]]
    cases: int
    unit: str


PARTS = {
    "kills": Part(kills, 500, "kills"),
    "pairs": Part(pairs, 200, "pairs"),
    "damages": Part(damages, 500, "damages"),
    "flips": Part(flips, 5000, "flips"),
    "commands": Part(commands, 500, "command lines"),
    "calls": Part(calls, 800, "calls"),
}


def campaign(seed: int, counts: dict[str, int], scratch: Path, store: bool) -> dict[str, Any]:
    """Run every part. A seed fixes the cases, but not what a process was doing when killed."""
    warm_up()
    os.environ["BILINEAR_CACHE"] = str(scratch / "cache")
    with bucket(scratch) if store else nullcontext() as name:
        folders = Folders(scratch, name)
        found: dict[str, Any] = {"seed": seed}
        for part in PARTS:
            if not counts[part]:
                continue
            began = time.monotonic()
            found[part] = PARTS[part].run(random.Random(f"{seed} {part}"), folders, counts[part])
            found[part]["seconds"] = round(time.monotonic() - began, 1)
            print(f"{part}: {found[part]}", flush=True)
    return found


def totals(runs: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Add up over several runs the cases of every part, and those that went wrong."""
    found: dict[str, dict[str, int]] = {}
    for part, (_, _, unit) in PARTS.items():
        done = [run[part] for run in runs if part in run]
        cases = sum(one[unit] for one in done)
        found[part] = {unit: cases, "wrong": sum(len(one["wrong"]) for one in done)}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.campaign", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    for name, part in PARTS.items():
        parser.add_argument(f"--{name}", type=int, default=part.cases, metavar="N")
    parser.add_argument("--no-store", action="store_true", help="leave out the S3 server")
    parser.add_argument("--add", action="store_true", help="keep the results of earlier runs")
    parser.add_argument("--no-result", action="store_true", help="print, but write no file")
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    scratch = Path(tempfile.mkdtemp(prefix="campaign-"))
    counts = {part: getattr(args, part) for part in PARTS}
    try:
        found = campaign(args.seed, counts, scratch, not args.no_store)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    wrong = sum(len(part["wrong"]) for part in found.values() if isinstance(part, dict))
    if not args.no_result:
        file = RESULTS / "campaign.json"
        earlier = json.loads(file.read_text())["runs"] if args.add and file.exists() else []
        runs = [*earlier, found]
        print(f"wrote {write_result('campaign', {'totals': totals(runs), 'runs': runs})}")
    print(f"{wrong} went wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
