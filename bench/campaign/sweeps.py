"""The sweeps that are attacked, and the comparison of their folders with undisturbed runs'."""

import filecmp
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from bench.campaign.memory import SCHEME, carried, copied
from bench.campaign.processes import Process

# The first: twelve models of p = 7, half a second on one core.
_SHORT = ["--p", "7", "--widths", "6..3", "--seeds", "3", "--steps", "800", "--hold", "800"]
_STUDY = ["--p", "5,7", "--widths", "5..3", "--seeds", "2", "--steps", "800", "--hold", "800"]
_NARROW = ["--p", "7", "--widths", "8..5", "--seeds", "2", "--steps", "300", "--hold", "300"]


@dataclass(frozen=True)
class Sweep:
    """A sweep: options of the command, whether models are packed by fives, and kind of place."""

    name: str
    options: tuple[str, ...]
    packed: bool = False
    place: str = "path"

    def run(self, out: str, *more: str) -> int:
        """Run the sweep in this process; returns the exit code."""
        # Plots are left out: they take half of the time and are written as other files are.
        with (
            mock.patch("bilinear.plots.save_summary"),
            mock.patch("bilinear.plots.save_study"),
            carried(out) if self.place == "memory" else nullcontext(),
        ):
            return self.command("--fused", *self.options, *more, "--out", out)

    def command(self, *line: str) -> int:
        """Run a command line, with this sweep's size of packs; returns the exit code."""
        from bilinear.cli.commands import main
        from bilinear.results import packs

        if self.packed:
            packs.LOOSE_MODELS, packs.PACK_MODELS = 5, 5
        return main(list(line))


def _sweeps(bucket: str | None) -> list[Sweep]:
    """Return every kind of sweep, at paths and URLs, and in S3 if there is a bucket."""
    found = [
        Sweep("single", tuple(_SHORT)),
        Sweep("packed", tuple(_SHORT), packed=True),
        Sweep("file URL", tuple(_SHORT), place="file"),
        Sweep("memory URL", tuple(_SHORT), place="memory"),
        Sweep("study", tuple(_STUDY)),
        Sweep("narrowed", (*_NARROW, "--narrow", "--tries", "2")),
    ]
    found *= 4  # an S3 server takes five times as long, so it is drawn less often
    if bucket is not None:
        found += [
            Sweep("S3", tuple(_SHORT), place="s3"),
            Sweep("S3, packed", tuple(_SHORT), packed=True, place="s3"),
            Sweep("S3, study", tuple(_STUDY), place="s3"),
        ]
    return found


class Folders:
    """Places for results folders, and the folders of undisturbed runs to compare with."""

    def __init__(self, scratch: Path, bucket: str | None) -> None:
        """Use the local folder `scratch`, and S3's `bucket` unless it is None."""
        self.scratch, self._bucket, self._n = scratch, bucket, 0
        self.sweeps = _sweeps(bucket)
        self.at_paths = [sweep for sweep in self.sweeps if sweep.place == "path"]
        self._whole: dict[tuple[Sweep, tuple[str, ...]], tuple[Path, float]] = {}

    def fresh(self, what: str) -> Path:
        """Return a new path in the scratch folder."""
        self._n += 1
        return self.scratch / f"{what}-{self._n}"

    def out(self, sweep: Sweep) -> str:
        """Return the path or URL of a new results folder for a sweep."""
        path = self.fresh("out")
        if sweep.place == "s3":
            return f"s3://{self._bucket}/{path.name}"
        return {"file": "file://", "memory": SCHEME}.get(sweep.place, "") + str(path)

    def process(self, work: Callable[[], int]) -> Process:
        """Start a process that runs `work`."""
        return Process(work, self.fresh("process"))

    def whole(self, sweep: Sweep, *more: str) -> tuple[Path, float]:
        """Return the local folder of an undisturbed run, and its seconds; it is run once."""
        if (sweep, more) not in self._whole:
            out = self.out(sweep)
            ended = self.process(lambda: sweep.run(out, *more)).end()
            if ended.code != 0:
                raise RuntimeError(f"an undisturbed run failed: {ended}")
            self._whole[sweep, more] = self.here(out), ended.seconds
        return self._whole[sweep, more]

    def here(self, out: str) -> Path:
        """Return a results folder as a local one: a copy, if it is in a store."""
        if out.startswith(SCHEME):
            return copied(out, self.fresh("copy"))
        if not out.startswith("s3://"):
            return Path(out.removeprefix("file://"))
        copy = self.fresh("copy")

        def download() -> int:
            import fsspec

            fsspec.filesystem("s3", skip_instance_cache=True).get(out, str(copy), recursive=True)
            return 0

        ended = self.process(download).end()
        if ended.code != 0:
            raise RuntimeError(f"{out} could not be read: {ended}")
        return copy

    def different(self, out: str, whole: Path) -> str:
        """Say how a folder differs from an undisturbed run's; empty if it does not."""
        folder = self.here(out)
        ours, theirs = files(folder), files(whole)
        if ours != theirs:
            return f"files {sorted(set(ours) ^ set(theirs))}"
        same = filecmp.cmpfiles(folder, whole, ours, shallow=False)[0]
        if len(same) != len(ours):
            return f"bytes of {sorted(set(ours) - set(same))}"
        if not in_store(out) and folders(folder) != folders(whole):
            return f"folders {sorted(set(folders(folder)) ^ set(folders(whole)))}"
        return ""


def in_store(out: str) -> bool:
    """Whether a results folder is in an object store or in memory, not on disk."""
    return out.startswith(("s3://", SCHEME))


def files(folder: Path) -> list[str]:
    """Names of the files whose bytes depend on the sweep's settings alone."""
    found = (f.relative_to(folder) for f in folder.rglob("*") if f.is_file())
    return sorted(str(f) for f in found if "set-aside" not in f.parts and f.name != "sessions.json")


def folders(folder: Path) -> list[str]:
    """Names of the folders inside, except those set aside."""
    found = (f.relative_to(folder) for f in folder.rglob("*") if f.is_dir())
    return sorted(str(f) for f in found if "set-aside" not in f.parts)
