"""Fills a results folder, a new one or one that an earlier run began."""

import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import torch

from bilinear.experiment.config import SweepConfig
from bilinear.experiment.record import Evaluation, Finished, Job
from bilinear.reading.interactions import interaction_matrices
from bilinear.results.begin import IDENTITY, begin
from bilinear.results.folder import Folder
from bilinear.results.frontier import frontier
from bilinear.results.packs import Packing, encode_pack, model_file, pack_name
from bilinear.results.seal import encode_sealed, is_sealed, tensors_of
from bilinear.results.sums import SUMS, write_summed
from bilinear.results.sweep_results import Results, encode_json, encode_table, table_of
from bilinear.results.verify import ASIDE, set_aside, verify

# In a sweep with packs a model that ended is held in memory for so many seconds, or until so many
# bytes are held, before it gets a file of its own: if its pack fills before that, it needs none.
_HOLD_SECONDS = 1.0
_HOLD_BYTES = 2**28


class ResultsWriter:
    """Fills a results folder, new or begun by an earlier run of the same config.

    The caller holds the folder's claim (`results.claim`).
    """

    def __init__(self, folder: Folder, config: SweepConfig, environment: dict[str, str]) -> None:
        """Make the folder, or check that the one there is this config's and this backend's.

        `there` is what earlier runs wrote, verified, and `rows` are its rows of the table. `mended`
        says what was damaged: damaged and unknown files are set aside, and models that are missing
        then are trained again.
        """
        encode_table(table_of([]))  # fails before training, not after it, where pyarrow is broken
        self.folder, self.config = folder, config
        self._packing = Packing(config)
        self._loose: dict[int, set[Job]] = defaultdict(set)
        self._held: dict[int, dict[Job, bytes]] = defaultdict(dict)
        self._held_bytes, self._held_since = 0, 0.0
        self.mended = begin(folder, config, environment)
        for inside in ("", "models", "packs", "in-training"):
            folder.sweep_up(inside, _is_ours)
        self.there = Results(folder)
        self.rows = self._verify()
        self._finish_packing()

    def _verify(self) -> list[dict[str, Any]]:
        """Read all that is there, and set aside what is damaged."""
        found = verify(self.there)
        packs = [finding for finding in found.findings if finding.name.startswith("packs/")]
        set_aside(self.folder, [finding for finding in found.findings if finding not in packs])
        self.folder.write_all(
            {f"models/{model_file(job)}": file for job, file in found.rescued.items()}
        )
        set_aside(self.folder, packs)
        unsealed = self._seal_those_without() if not self.there.has_digests else []
        self.mended += [f"{finding}; it is in {ASIDE}/ now" for finding in found.findings]
        self.mended += unsealed
        if found.findings or unsealed:
            self.there = Results(self.folder)
        return [found.rows[job] for job in sorted(found.rows)]

    def _seal_those_without(self) -> list[str]:
        """Give the models of an earlier version a digest."""
        there, without = self.there, 0
        for job in sorted(there.loose | there.twice):
            name = f"models/{model_file(job)}"
            content = self.folder.read(name)
            if not is_sealed(content):
                without += 1
                self.folder.write(name, self._sealed(job, content))
        for pack in there.packs:
            jobs = there.packing.jobs(pack)
            with closing(there.pack(pack)) as archive:
                files = [archive.model(job, there.most_bytes(job)) for job in jobs]
                rows = archive.rows(jobs)
            if not all(map(is_sealed, files)):
                without += len(jobs)
                sealed = [(job, self._sealed(job, f)) for job, f in zip(jobs, files, strict=True)]
                self.folder.write(f"packs/{pack_name(pack)}", encode_pack(sealed, rows))
        write_summed(self.folder, {name: self.folder.read(name) for name in IDENTITY})
        return [f"{without:,} models had no digest and have one now"] if without else []

    def _sealed(self, job: Job, content: bytes) -> bytes:
        row = self.there.verified_row(job, content)
        return encode_sealed(tensors_of(content), row, self.there.origin)

    def _finish_packing(self) -> None:
        """Pack models that an earlier run was killed before packing, or before deleting."""
        self.folder.delete([f"models/{model_file(job)}" for job in self.there.twice])
        if not self._packing.packs:
            return
        for job in self.there.loose:
            self._loose[self._packing.pack_of(job)].add(job)
        packed = [pack for pack in sorted(self._loose) if self._pack_if_full(pack)]
        if packed or self.there.twice:
            self.there = Results(self.folder)

    def write_model(self, model: Finished) -> None:
        """Write one model's file; if the sweep has packs, hold it for its pack (see `settle`)."""
        content = encode_model(model, self.config.remainders, self.there.origin)
        if not self._packing.packs:
            self.folder.write(f"models/{model_file(model.job)}", content)
            return
        if not self._held_bytes:
            self._held_since = time.monotonic()
        pack = self._packing.pack_of(model.job)
        self._held[pack][model.job] = content
        self._held_bytes += len(content)
        self._pack_if_full(pack)

    @property
    def holds(self) -> bool:
        """Whether a model is held in memory that is in no file yet."""
        return self._held_bytes > 0

    def settle(self, *, now: bool = False) -> None:
        """Write the held models, a file each, if held for long or of many bytes, or if `now`."""
        held_for = time.monotonic() - self._held_since
        if not (now or held_for > _HOLD_SECONDS or self._held_bytes > _HOLD_BYTES):
            return
        files = {job: file for held in self._held.values() for job, file in held.items()}
        self.folder.write_all({f"models/{model_file(job)}": file for job, file in files.items()})
        for pack, held in self._held.items():
            self._loose[pack].update(held)
        self._held.clear()
        self._held_bytes = 0

    def _pack_if_full(self, pack: int) -> bool:
        held = self._held[pack]
        if len(self._loose[pack]) + len(held) < self._packing.count(pack):
            return False
        jobs = self._packing.jobs(pack)
        loose = [job for job in jobs if job in self._loose[pack]]
        names = [f"models/{model_file(job)}" for job in loose]
        files = held | dict(zip(loose, self.folder.read_all(names), strict=True))
        members = [(job, files[job]) for job in jobs]
        # Verified first: the pack's checksum would be that of a damaged file.
        rows = [self.there.row_of(job, file) for job, file in members]
        self.folder.write(f"packs/{pack_name(pack)}", encode_pack(members, rows))
        self.folder.delete(names)
        self._held_bytes -= sum(map(len, held.values()))
        del self._loose[pack], self._held[pack]
        return True

    def finish(self) -> None:
        """Write the table and the summary once every model has ended."""
        self.settle(now=True)
        table = table_of(Results(self.folder).rows())
        files = {"table.parquet": encode_table(table), "summary.json": encode_json(frontier(table))}
        write_summed(self.folder, files)
        for empty in ("models", "packs", "in-training"):
            self.folder.remove_empty(empty)


def _is_ours(name: str) -> bool:
    written = {*IDENTITY, SUMS, "table.parquet", "summary.json", "sessions.json"}
    return name in written or name.endswith((".safetensors", ".zip", ".png"))


def encode_model(model: Finished, remainders: Sequence[int], origin: str) -> bytes:
    """Make a model's file: weights, learning curve, interaction matrices, and its table row.

    `origin` is that of its folder (`results.seal.origin_of`).
    """
    tensors = dict(model.state_dict)
    for name, column in zip(
        Evaluation._fields, zip(*model.record.evaluations, strict=True), strict=True
    ):
        dtype = torch.int64 if name == "step" else torch.float64
        tensors[f"history.{name}"] = torch.tensor(column, dtype=dtype)
    interactions = model.interactions
    if interactions is None:
        interactions = interaction_matrices(model.weights, remainders)
    tensors["interactions"] = interactions.contiguous()
    if model.lineage is not None:
        tensors["units"] = torch.tensor(model.lineage.units)
    return encode_sealed(tensors, model.row, origin)
