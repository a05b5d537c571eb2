"""Filling a results folder, begun now or by an earlier run that was killed."""

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import safetensors.torch
import torch

from bilinear.errors import ConfigError, ResultsError
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.record import Evaluation, Finished, Job
from bilinear.reading.interactions import interaction_matrices
from bilinear.results.folder import Folder
from bilinear.results.frontier import frontier
from bilinear.results.packs import PackPlan, encode_pack, model_file, pack_name
from bilinear.results.sweep_results import Results, encode_json, encode_table, row_of

_INTEGER_COLUMNS = ("step",)
# Of a large sweep, models that ended are held so long: packs that fill meanwhile are written at
# once, without a file for each model.
_HOLD_SECONDS = 1.0
_HOLD_BYTES = 2**28


class ResultsWriter:
    """Fills a results folder, new or begun by an earlier run of the same config."""

    def __init__(self, folder: Folder, config: SweepConfig, environment: dict[str, Any]) -> None:
        """Make the folder, or check that the one there is this config's and this backend's.

        `there` is what an earlier run left in it.
        """
        self.folder, self.config = folder, config
        self._plan = PackPlan(config)
        self._loose: dict[int, set[Job]] = defaultdict(set)
        self._held: dict[int, dict[Job, bytes]] = defaultdict(dict)
        self._held_bytes, self._held_since = 0, 0.0
        names = set(folder.names())
        if "config.json" not in names:
            self._begin(names, environment)
        folder.sweep_up()
        self.there = Results(folder)
        self._check_same(environment)
        self._finish_packing()

    def _begin(self, names: set[str], environment: dict[str, Any]) -> None:
        """A creation that was interrupted has no config yet: it is begun again."""
        known = {"environment.json", "environment.json.partial", "config.json.partial"}
        strange = sorted(names - known)
        if strange:
            raise ResultsError(
                f"out: expected a new folder or a results folder, got {str(self.folder)!r}, "
                f"which holds {strange[0]!r} and no config.json"
            )
        self.folder.write("environment.json", encode_json(environment))
        self.folder.write("config.json", self.config.to_json().encode())

    def _check_same(self, environment: dict[str, Any]) -> None:
        there = self.there
        if there.config != self.config:
            different = "; ".join(self.config.differences(there.config))
            raise ConfigError(f"out: {str(self.folder)!r} belongs to another config ({different})")
        if there.environment != environment:
            raise ConfigError(
                f"out: {str(self.folder)!r} was begun with {there.environment}, this is "
                f"{environment}; the bits of its models could differ"
            )

    def _finish_packing(self) -> None:
        """Go on where an earlier run was killed in it."""
        self.folder.delete([f"models/{model_file(job)}" for job in self.there.twice])
        if not self._plan.packs:
            return
        for job in self.there.loose:
            self._loose[self._plan.pack_of(job)].add(job)
        packed = [pack for pack in sorted(self._loose) if self._pack_if_full(pack)]
        if packed:
            self.there = Results(self.folder)

    def write_model(self, model: Finished) -> None:
        """Write one model's file; if the sweep has packs, hold it for its own (see `settle`)."""
        content = encode_model(model, self.config.remainders)
        if not self._plan.packs:
            self.folder.write(f"models/{model_file(model.job)}", content)
            return
        if not self._held_bytes:
            self._held_since = time.monotonic()
        pack = self._plan.pack_of(model.job)
        self._held[pack][model.job] = content
        self._held_bytes += len(content)
        self._pack_if_full(pack)

    @property
    def holds(self) -> bool:
        """Whether a model is held that is in no file yet."""
        return self._held_bytes > 0

    def settle(self, *, now: bool = False) -> None:
        """Write the models held, a file each, if they were for a second, are many, or `now`."""
        held_for = time.monotonic() - self._held_since
        if not (now or held_for > _HOLD_SECONDS or self._held_bytes > _HOLD_BYTES):
            return
        files: dict[Job, bytes] = {}
        for held in self._held.values():
            files |= held
        self.folder.write_all({f"models/{model_file(job)}": files[job] for job in files})
        for pack, held in self._held.items():
            self._loose[pack].update(held)
        self._held.clear()
        self._held_bytes = 0

    def _pack_if_full(self, pack: int) -> bool:
        held = self._held[pack]
        if len(self._loose[pack]) + len(held) < self._plan.count(pack):
            return False
        jobs = self._plan.jobs(pack)
        loose = [job for job in jobs if job in self._loose[pack]]
        names = [f"models/{model_file(job)}" for job in loose]
        files = held | dict(zip(loose, self.folder.read_all(names), strict=True))
        members = [(job, files[job]) for job in jobs]
        rows = [row_of(self.folder, f"models/{model_file(job)}", file) for job, file in members]
        self.folder.write(f"packs/{pack_name(pack)}", encode_pack(members, rows))
        self.folder.delete(names)
        self._held_bytes -= sum(map(len, held.values()))
        del self._loose[pack], self._held[pack]
        return True

    def finish(self) -> None:
        """Write the table and the summary once every model has ended."""
        self.settle(now=True)
        table = Results(self.folder).table
        self.folder.write("table.parquet", encode_table(table))
        self.folder.write("summary.json", encode_json(frontier(table)))


def encode_model(model: Finished, remainders: Sequence[int]) -> bytes:
    """Make a model's file: weights, learning curve, interaction matrices, and its table row."""
    tensors = dict(model.state_dict)
    for name, column in zip(
        Evaluation._fields, zip(*model.record.evaluations, strict=True), strict=True
    ):
        dtype = torch.int64 if name in _INTEGER_COLUMNS else torch.float64
        tensors[f"history.{name}"] = torch.tensor(column, dtype=dtype)
    interactions = model.interactions
    if interactions is None:
        interactions = interaction_matrices(model, remainders)
    tensors["interactions"] = interactions.contiguous()
    # One metadata key: the format keeps several in no fixed order.
    row = json.dumps(model.record.row(model.job))
    return safetensors.torch.save(tensors, metadata={"row": row})
