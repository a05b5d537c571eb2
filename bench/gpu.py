"""Everything a visit to a GPU should do, in order of worth: `python -m bench.gpu --minutes 9`.

    smoke     every kernel with every gate, small: against float64, under compute-sanitizer
    tests     the kernels' and the layer's tests on this device
    roofs     copy bandwidth and matmul rates: what all else is held against
    tiles     tiles and crossovers measured; writes kernels/table.json
    sweep     seconds of training and of the command; a training step against ensembles
    layer     the layer on that table, against PyTorch and every fused layer that is installed
    counters  hardware counters of the three hottest kernels
    frontier  share of perfect seeds by width, for four moduli

No failure loses what is done: each part is a list of items (`bench/visit`), its file
gpu-PART.json is written after each, an item that fails, hangs or takes the device down costs no
other, and the same command goes on where it stopped. Where a device is had for half an hour, starts
included: two calls of nine minutes and one of six (`--minutes 6`), which leaves four for starts and
copies. `--again PART` forgets what a part has. Where the device is on another machine, that keeps
nothing and sends back a few files, `--home FOLDER` packs everything into one file there after each
part; `python -m bench.gpu --unpack FILE`, here, puts results and the measured table into the
checkout, to be committed, and for the next call to go on from. Without a GPU, `--quick` runs every
part on small sizes under Triton's interpreter, with an item in each that fails as a device would;
its figures mean nothing, and it writes nowhere in the repository.
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
from bench.visit import parcel, tiles
from bench.visit.commands import ROOT
from bench.visit.commands import end as end_processes
from bench.visit.items import read, write
from bench.visit.parts import PARTS, file_of

# A worker that died is followed by another this many times a part.
_WORKERS = 12
# Modules and programs that a part can do without, at the price of some of its items.
_WANTED = {
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
    """What is not on this machine, and what is left out for it."""
    found = [
        f"{name}: {without}"
        for name, without in _WANTED.items()
        if importlib.util.find_spec(name) is None
    ]
    return found + [
        f"{name}: {without}" for name, without in _PROGRAMS.items() if shutil.which(name) is None
    ]


def run_part(name: str, folder: Path, end: float, *, quick: bool) -> None:
    """Work on a part until its items are done or the clock ends, one worker after another."""
    path = file_of(name, folder)
    command = [sys.executable, "-m", "bench.visit.worker", name, str(folder), "--end", str(end)]
    command += ["--quick"] if quick else []
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    for _ in range(_WORKERS):
        worker = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
        try:
            code: int | None = worker.wait(timeout=max(5.0, end - time.time()) + 10)
        except subprocess.TimeoutExpired:
            code = None
        if code != 0:
            end_processes(worker)
        if not _ended_in(path, code, out_of_time=time.time() > end - 3):
            return


def _ended_in(path: Path, code: int | None, *, out_of_time: bool) -> bool:
    """Note which item a worker died in; whether another worker should go on.

    An item cut off by the end of the clock is left for the next call.
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
    """A line a part: done, failed, left for the next call; and how many items failed."""
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
            + ("; its stand-in failed, as it should" if len(real) < len(failed) else "")
        )
        lines += [f"          {key}: {items[key]['failed'][:160]}" for key in real]
    return "\n".join(lines), failures


def main(argv: list[str] | None = None) -> int:
    """Run the queue; returns how many items failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--again", nargs="+", choices=PARTS, default=[], help="forget these first")
    parser.add_argument("--out", type=Path, help="folder to go on in (bench/results)")
    parser.add_argument("--minutes", type=float, default=9.0, help="the clock of this call (9)")
    parser.add_argument("--home", type=Path, help="folder for one file with all that was found")
    parser.add_argument(
        "--unpack", type=Path, metavar="FILE", help="of --home: into --out; no more"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    args = parser.parse_args(argv)
    if args.unpack:
        folder = args.out or RESULTS
        print("unpacked:", *parcel.unpack(args.unpack, folder))
        _adopt(folder)
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
    _adopt(folder)
    end = time.time() + args.minutes * 60 - 15
    for name in args.parts:
        if time.time() > end:
            break
        print(f"{name}:", flush=True)
        run_part(name, folder, end, quick=args.quick)
        if name == "tiles":
            _adopt(folder)
        if args.home:
            parcel.pack(folder, args.home)
    told, failures = summary(args.parts, folder)
    print(f"{told}\nwrote {folder}", flush=True)
    return failures


def _adopt(folder: Path) -> None:
    """Let the kernels run on the table an earlier call measured, or this one."""
    tiles.adopt(read(file_of("tiles", folder)))


if __name__ == "__main__":
    sys.exit(main())
