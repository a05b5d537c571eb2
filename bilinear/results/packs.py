"""Packs: a large sweep keeps its models in a few zip files instead of one file each.

A pack is an uncompressed zip file: `rows.json`, the rows of the table of its models, then the files
that a small sweep would have (`d064-s0000.safetensors`). The config alone determines which models
share a pack, and so a pack's bytes. Any zip tool unpacks it.
"""

import io
import json
import re
import zipfile
from collections.abc import Sequence
from typing import Any, BinaryIO

from bilinear.experiment.config import SweepConfig
from bilinear.experiment.cost import model_disk_bytes
from bilinear.experiment.record import Job

# A sweep of at most so many models keeps a file for each, which people can find and copy.
LOOSE_MODELS = 100
# The most models and bytes of a pack: it is made in memory, and written to a store in one piece.
PACK_MODELS = 256
PACK_BYTES = 2**27

_ROWS = "rows.json"
# The most bytes of one row of the table as JSON.
ROW_BYTES = 2**11
_EPOCH = (
    1980,
    1,
    1,
    0,
    0,
    0,
)  # zip's earliest date; with the time of writing the bytes would differ


class Packing:
    """Which pack each model of a config belongs to; models are in the order of the table."""

    def __init__(self, config: SweepConfig) -> None:
        """A sweep of at most LOOSE_MODELS models has no packs."""
        self._widths = sorted(config.widths, reverse=True)
        self._seeds = sorted(config.seeds)
        self._place = {d: i for i, d in enumerate(self._widths)}
        self._rank = {seed: i for i, seed in enumerate(self._seeds)}
        self.models = len(self._widths) * len(self._seeds)
        largest = model_disk_bytes(config, self._widths[0])
        self.size = max(1, min(PACK_MODELS, PACK_BYTES // largest))
        self.packs = -(-self.models // self.size) if self.models > LOOSE_MODELS else 0

    def __contains__(self, job: Job) -> bool:
        """Whether the config has this model."""
        return job.d_hidden in self._place and job.seed in self._rank

    def position(self, job: Job) -> int:
        """Return the model's row in the table."""
        return self._place[job.d_hidden] * len(self._seeds) + self._rank[job.seed]

    def pack_of(self, job: Job) -> int:
        """Return the number of the model's pack."""
        return self.position(job) // self.size

    def count(self, pack: int) -> int:
        """Return how many models share a pack."""
        return min(self.size, self.models - pack * self.size)

    def jobs(self, pack: int) -> list[Job]:
        """Return a pack's models, in its order."""
        places = range(pack * self.size, pack * self.size + self.count(pack))
        n = len(self._seeds)
        return [Job(self._widths[i // n], self._seeds[i % n]) for i in places]

    def jobs_among(self, names: Sequence[str]) -> list[Job]:
        """Return the models of this config whose files have these names."""
        return [job for job in map(job_of, names) if job is not None and job in self]

    def packs_among(self, names: Sequence[str]) -> list[int]:
        """Return the packs of this config whose files have these names."""
        packs = map(pack_of_name, names)
        return [pack for pack in packs if pack is not None and pack < self.packs]


def model_file(job: Job) -> str:
    """Name a model's file, loose or in a pack."""
    return f"d{job.d_hidden:03d}-s{job.seed:04d}.safetensors"


def job_of(name: str) -> Job | None:
    """Return the model whose file has this name, None for another name."""
    match = re.fullmatch(r"d([0-9]{1,20})-s([0-9]{1,20})\.safetensors", name)
    job = Job(*map(int, match.groups())) if match else None
    return job if job is not None and model_file(job) == name else None


def pack_name(pack: int) -> str:
    """Name a pack's file."""
    return f"{pack:06d}.zip"


def pack_of_name(name: str) -> int | None:
    """Return the number of the pack whose file has this name, None for another name."""
    match = re.fullmatch(r"([0-9]{6,20})\.zip", name)
    pack = int(match[1]) if match else None
    return pack if pack is not None and pack_name(pack) == name else None


def encode_pack(members: Sequence[tuple[Job, bytes]], rows: Sequence[dict[str, Any]]) -> bytes:
    """Write the files of a pack's models, and their rows of the table."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_member(_ROWS), json.dumps(list(rows)))
        for job, file in members:
            archive.writestr(_member(model_file(job)), file)
    return content.getvalue()


def _member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.create_system, info.external_attr = 3, 0o644 << 16
    return info


class Pack:
    """A pack opened for reading; raises zipfile.BadZipFile, KeyError or OSError if damaged."""

    def __init__(self, file: BinaryIO) -> None:
        """Read the list of models at the file's end; the file is closed with the pack."""
        try:
            self._archive = zipfile.ZipFile(file)
        except BaseException:
            file.close()
            raise
        self._file = file

    def model(self, job: Job, most: int) -> bytes:
        """Return a model's file of at most so many bytes; the zip's checksum is checked."""
        return self._member(model_file(job), most)

    def rows(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """Return the rows of the table; `jobs` are all models of the pack, in its order."""
        rows: list[dict[str, Any]] = json.loads(self._member(_ROWS, ROW_BYTES * len(jobs)))
        if [Job(row["d_hidden"], row["seed"]) for row in rows] != list(jobs):
            raise ValueError(f"its {_ROWS} is not of its models")
        return rows

    def holds_only(self, jobs: Sequence[Job]) -> bool:
        """Whether its members are those of `encode_pack`, in that order."""
        return self._archive.namelist() == [_ROWS, *map(model_file, jobs)]

    def _member(self, name: str, most: int) -> bytes:
        """Read a member; one that is larger than `most` by its own header is not read at all."""
        member = self._archive.getinfo(name)
        if member.compress_type != zipfile.ZIP_STORED or member.file_size > most:
            raise zipfile.BadZipFile(f"{name} is compressed, or of more than {most:,} bytes")
        return self._archive.read(member)

    def close(self) -> None:
        """Close the file."""
        self._archive.close()
        self._file.close()
