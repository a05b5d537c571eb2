"""Runs all tests and measurements on a GPU, most valuable first: `python -m bench.gpu --minutes 9`.

    smoke     every kernel with every gate on small shapes: against float64, under compute-sanitizer
    tests     the kernels' and the layer's tests on this device
    roofs     copy bandwidth and matmul rates, with which all other rates are compared
    tiles     tiles and crossovers measured; writes kernels/table.json
    sweep     seconds of training and of the command; a training step against ensembles
    layer     the layer with that table, against PyTorch and every fused layer that is installed
    counters  hardware counters of the three kernels that take most time
    frontier  share of perfect seeds by width, for four moduli

Each part is a list of items (`bench/visit`). A part's results, gpu-PART.json, are written after
each item, so an item that fails, hangs or crashes the device loses no other item's result, and the
same command continues where it stopped. `--again PART` deletes a part's results first.

Parts take turns of a minute or two, in the order above; then the part that has used the fewest of
its turns comes next, also in a later call. So nine minutes bring something of each part. If a GPU
can be used for a quarter of an hour, make a call of nine minutes and right after it one of two and
a half (`--minutes 2.5`): the rest goes to starting the machine and copying files.

If the GPU is in a machine whose files are lost afterwards, `--home FOLDER` writes an archive of all
results and logs there after each part. `python -m bench.gpu --unpack FILE` extracts it into this
checkout, the measured table included, to be committed or continued from.

Without a GPU, `--quick` runs every part on small sizes under Triton's interpreter, with one item in
each that fails on purpose. Its figures mean nothing; nothing is written into the repository.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from bench.measure.environment import RESULTS
from bench.visit import archive, tiles
from bench.visit.commands import ROOT
from bench.visit.commands import end as end_processes
from bench.visit.items import read, write
from bench.visit.parts import PARTS, file_of

# The most workers for a part: one is started after another has died.
_WORKERS = 12
# Optional modules and programs, and what is left out without them.
_MODULES = {
    "xdist": "tests run one after another",
    "hypothesis": "tests that draw their cases are left out",
    "liger_kernel": "no Liger-Kernel among the peers",
    "quack": "no quack among the peers",
    "ray": "tests of Ray are left out",
    "moto": "tests of object stores are left out",
    "selenium": "tests of the page in a browser are left out",
}
_PROGRAMS = {
    "compute-sanitizer": "no search for races and bad addresses",
    "ncu": "no hardware counters",
    "nvidia-smi": "no clocks and driver in the files",
}


def missing() -> list[str]:
    """List what is not installed on this machine, and what is left out without it."""
    found = {name: importlib.util.find_spec(name) for name in _MODULES}
    found |= {name: shutil.which(name) for name in _PROGRAMS}
    every = _MODULES | _PROGRAMS
    return [f"{name}: {every[name]}" for name in every if found[name] is None]


def run_part(name: str, folder: Path, end: float, *, quick: bool) -> None:
    """Run a turn of a part's items; a worker that dies is replaced."""
    path, start = file_of(name, folder), time.time()
    command = [sys.executable, "-m", "bench.visit.worker", name, str(folder), "--end", str(end)]
    command += ["--quick"] if quick else []
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    for _ in range(_WORKERS):
        left = PARTS[name].turn - (time.time() - start)
        worker = subprocess.Popen(
            [*command, "--turn", str(left)], cwd=ROOT, env=environment, start_new_session=True
        )
        try:
            code: int | None = worker.wait(timeout=max(5.0, end - time.time()) + 10)
        except subprocess.TimeoutExpired:
            code = None
        if code != 0:
            end_processes(worker)
        if not _ended_in(path, code, out_of_time=time.time() > end - 3):
            break
    if content := read(path):
        content["seconds"] += time.time() - start
        write(path, content)


def next_part(names: list[str], folder: Path) -> str | None:
    """The unfinished part that has used the fewest of its turns; the first of equals."""

    def turns(name: str) -> float:
        return read(file_of(name, folder)).get("seconds", 0.0) / PARTS[name].turn

    unfinished = [name for name in names if read(file_of(name, folder)).get("left") != []]
    return min(unfinished, key=turns, default=None)


def _ended_in(path: Path, code: int | None, *, out_of_time: bool) -> bool:
    """Mark the item in which a worker died as failed; returns whether to start another worker.

    An item that was stopped because the call's time is over is left for the next call.
    """
    content = read(path)
    key = content.pop("running", None)
    if out_of_time:
        if content:
            write(path, content)
        return False
    if key is not None:
        how = "ran past its time" if code in (None, 1) else f"the process died, exit {code}"
        content["items"][key] = {"failed": f"{how}: see the output"}
        write(path, content)
        print(f"  {key}: {how}", flush=True)
    return key is not None or (code != 0 and "items" in content)


def summary(names: list[str], folder: Path) -> tuple[str, int]:
    """Count items done, failed and left, in a line per part; returns the failures, too."""
    lines, failures = [], 0
    for name in names:
        content = read(file_of(name, folder))
        items = content.get("items", {})
        failed = [key for key, found in items.items() if "failed" in found]
        real = [key for key in failed if not key.startswith("stand-in: ")]
        failures += len(real)
        left = len(content["left"]) if "left" in content else "all"
        lines.append(
            f"{name:<9} {len(items) - len(failed)} done, {len(real)} failed, {left} left, "
            f"{content.get('seconds', 0.0):.0f} s"
            + ("; its stand-in failed on purpose" if len(real) < len(failed) else "")
        )
        lines += [f"          {key}: {items[key]['failed'][:160]}" for key in real]
    return "\n".join(lines), failures


def main(argv: list[str] | None = None) -> int:
    """Run the parts; returns how many items failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--again",
        nargs="+",
        choices=PARTS,
        default=[],
        help="delete the results of these parts first",
    )
    parser.add_argument(
        "--out", type=Path, help="folder of the results, continued if there are any (bench/results)"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="time for this call (9)")
    parser.add_argument(
        "--home", type=Path, help="write an archive of results and logs to this folder"
    )
    parser.add_argument(
        "--unpack",
        type=Path,
        metavar="FILE",
        help="only extract an archive that --home wrote, into --out",
    )
    parser.add_argument("--quick", action="store_true", help="a dry run on small sizes")
    args = parser.parse_args(argv)
    if args.unpack:
        folder = args.out or RESULTS
        print("unpacked:", *archive.unpack(args.unpack, folder))
        _write_table(folder)
        return 0
    if not (torch.cuda.is_available() or args.quick):
        parser.error("needs a CUDA device; torch.cuda.is_available() is False (try --quick)")
    folder = args.out or (Path(tempfile.mkdtemp(prefix="bilinear-gpu-")) if args.quick else RESULTS)
    if args.quick and folder.resolve().is_relative_to(ROOT.resolve()):
        parser.error(f"--out: a dry run writes nothing into the repository, got {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    for name in args.again:
        file_of(name, folder).unlink(missing_ok=True)
    lacking = missing()
    print("missing here:", *(lacking or ["nothing"]), sep="\n  ", flush=True)
    _write_table(folder)
    end = time.time() + args.minutes * 60 - 15
    names = list(args.parts)
    while time.time() < end and (name := next_part(names, folder)):
        print(f"{name}:", flush=True)
        before = read(file_of(name, folder)).get("items")
        run_part(name, folder, end, quick=args.quick)
        if read(file_of(name, folder)).get("items") == before:
            names.remove(name)  # too little time is left for its next item
        if name == "tiles":
            _write_table(folder)
        if args.home:
            archive.pack(folder, args.home)
    lines, failures = summary(args.parts, folder)
    print(f"{lines}\nwrote {folder}", flush=True)
    return failures


def _write_table(folder: Path) -> None:
    """Let the kernels use the table of tiles that this call or an earlier one has measured."""
    tiles.write_table(read(file_of("tiles", folder)))


if __name__ == "__main__":
    sys.exit(main())
