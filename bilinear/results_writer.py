"""Filling a results folder, begun now or by an earlier run that was killed."""

import json
from collections import defaultdict
from typing import Any

import safetensors.torch
import torch

from bilinear.config import SweepConfig
from bilinear.errors import ConfigError, ResultsError
from bilinear.frontier import frontier
from bilinear.interactions import interaction_matrices
from bilinear.packs import PackPlan, encode_pack, model_file, pack_name
from bilinear.results import Results, encode_json, encode_table, row_of
from bilinear.storage import Folder
from bilinear.training import Evaluation, Finished, Job

_INTEGER_COLUMNS = ("step",)


class ResultsWriter:
    """Fills a results folder, new or begun by an earlier run of the same config."""

    def __init__(self, folder: Folder, config: SweepConfig, environment: dict[str, Any]) -> None:
        """Make the folder, or check that the one there is this config's and this backend's.

        `there` is what an earlier run left in it.
        """
        self.folder, self.config = folder, config
        self._plan = PackPlan(config)
        self._loose: dict[int, set[Job]] = defaultdict(set)
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
        """Write one model's file, and its pack if that is now full."""
        tensors = dict(model.state_dict)
        for name, column in zip(
            Evaluation._fields, zip(*model.record.evaluations, strict=True), strict=True
        ):
            dtype = torch.int64 if name in _INTEGER_COLUMNS else torch.float64
            tensors[f"history.{name}"] = torch.tensor(column, dtype=dtype)
        interactions = model.interactions
        if interactions is None:
            interactions = interaction_matrices(
                model.w_l, model.w_r, model.w_p, outputs=self.config.remainders
            )
        tensors["interactions"] = interactions.contiguous()
        # One metadata key: the format keeps several in no fixed order.
        row = json.dumps(model.record.row(model.job))
        content = safetensors.torch.save(tensors, metadata={"row": row})
        self.folder.write(f"models/{model_file(model.job)}", content)
        if self._plan.packs:
            pack = self._plan.pack_of(model.job)
            self._loose[pack].add(model.job)
            self._pack_if_full(pack)

    def _pack_if_full(self, pack: int) -> bool:
        jobs = self._plan.jobs(pack)
        if len(self._loose[pack]) < len(jobs):
            return False
        names = [f"models/{model_file(job)}" for job in jobs]
        files = self.folder.read_all(names)
        rows = [row_of(self.folder, *file) for file in zip(names, files, strict=True)]
        content = encode_pack(list(zip(jobs, files, strict=True)), rows)
        self.folder.write(f"packs/{pack_name(pack)}", content)
        self.folder.delete(names)
        del self._loose[pack]
        return True

    def finish(self) -> None:
        """Write the table and the summary once every model is there."""
        table = Results(self.folder).table
        self.folder.write("table.parquet", encode_table(table))
        self.folder.write("summary.json", encode_json(frontier(table)))
