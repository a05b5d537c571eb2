"""A sweep on disk: a folder with its config, its models, and at the end a table.

    config.json          the SweepConfig
    environment.json     the backend and versions that trained it, which its bits depend on
    sessions.json        who worked on it: command, date, versions, commit, device of each run
    models/d064-s0000.safetensors   state dict, `history.*` columns, `interactions`, and the model's
                         row of the table as metadata; written when the model ends
    packs/000000.zip     in a sweep of many models, those of `results.packs`, once they all ended
    table.parquet        the rows of all models; there once every model is
    summary.json         `bilinear.results.frontier.frontier` of the table

Every file is written whole (`results.folder`): what is there can be trusted. Nothing in the
finished folder but `sessions.json` depends on when, or in what order, models ended. No pickle is
read or written.
"""

import io
import json
import os
import struct
import weakref
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import safetensors
import safetensors.torch
from torch import Tensor

from bilinear.errors import ConfigError, ResultsError, extra
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.record import Evaluation, Job
from bilinear.reading.interactions import interaction_matrices
from bilinear.reference import Model, ModelConfig
from bilinear.results.folder import Folder, open_folder
from bilinear.results.packs import Pack, PackPlan, is_pack, job_of, model_file, pack_name

if TYPE_CHECKING:
    import pandas as pd

_T = TypeVar("_T")
_INTEGER_COLUMNS = ("step",)
_ROW_GROUP = 2**16


class Results:
    """A results folder: `config`, `environment`, `table`, and the models by (d_hidden, seed).

    `model(d)` is a trained model, `interaction(d, remainder)` one of its interaction matrices.
    `models[d, s]` is a state dict that `bilinear.reference.Model` loads; `histories[d, s]` a frame
    with a row an evaluation (`experiment.record.Evaluation`); `interactions[d, s]` the interaction
    matrices of `config.remainders`, (n_remainders, 2p, 2p). All three are read when asked for.
    `loose` are the models with a file of their own, `twice` those that are in a pack as well.
    """

    def __init__(self, where: str | os.PathLike[str] | Folder) -> None:
        """Read the config and the list of models there are."""
        self.folder = existing_folder(where)
        self.config = read_json(self.folder, "config.json", SweepConfig.from_json)
        self.environment: dict[str, Any] = read_json(self.folder, "environment.json", json.loads)
        self._plan = PackPlan(self.config)
        self._packs = [int(name[:-4]) for name in self.folder.names("packs") if is_pack(name)]
        packed = [job for pack in self._packs for job in self._plan.jobs(pack)]
        found = map(job_of, self.folder.names("models"))
        loose = {job for job in found if job is not None}
        self.loose, self.twice = loose.difference(packed), loose.intersection(packed)
        self.jobs = sorted(self.loose.union(packed))

    def __repr__(self) -> str:
        """Say where, what and how many."""
        n = self._plan.models
        return f"Results({str(self.folder)!r}, p={self.config.p}, {len(self.jobs)} of {n} models)"

    @property
    def path(self) -> Path:
        """Where the folder is on this machine; raises ResultsError for one at a URL."""
        if self.folder.path is None:
            raise ResultsError(f"path: expected a folder of this machine, got {self.folder}")
        return self.folder.path

    @property
    def complete(self) -> bool:
        """Whether every model of the config is there."""
        return len(self.jobs) == self._plan.models

    @cached_property
    def table(self) -> "pd.DataFrame":
        """A row a model (`bilinear.experiment.record.Record.row`), by falling width, then seed."""
        table = read_table(self.folder)
        return _table(self.rows()) if table is None else table

    def rows(self) -> list[dict[str, Any]]:
        """Read the rows of the table from the models' own files."""
        packed = [row for pack in self._packs for row in self._read_pack(pack, Pack.rows)]
        names = [f"models/{model_file(job)}" for job in sorted(self.loose)]
        files = self.folder.read_all(names)
        return packed + [row_of(self.folder, *file) for file in zip(names, files, strict=True)]

    def model(self, d_hidden: int, seed: int | None = None) -> Model:
        """Return a trained model, (…, 2p) → logits (…, p), whose weights require no gradient.

        Everything in `bilinear.reading` takes it. `seed` None is the sweep's first: 0, unless it
        was given a list. Raises KeyError for a model that is not there.
        """
        state = self.models[self._job(d_hidden, seed)]
        model = Model(ModelConfig(self.config.p, d_hidden)).requires_grad_(False)
        model.load_state_dict(state)
        return model.eval()

    def interaction(self, d_hidden: int, remainder: int, seed: int | None = None) -> Tensor:
        """Return one remainder's interaction matrix (2p, 2p): xᵀQx is its logit.

        Read from the folder, or computed if the sweep didn't keep this remainder's. `seed` as in
        `model`. Raises ConfigError for a remainder that is not one of 0 … p − 1, KeyError for a
        model that is not there.
        """
        p, kept = self.config.p, self.config.remainders
        if remainder not in range(p):
            raise ConfigError(f"remainder: expected 0 to {p - 1}, got {remainder!r}")
        job = self._job(d_hidden, seed)
        if remainder in kept:
            return self.interactions[job][kept.index(remainder)]
        return interaction_matrices(self.models[job], remainder)

    def _job(self, d_hidden: int, seed: int | None) -> tuple[int, int]:
        return d_hidden, self.config.seeds[0] if seed is None else seed

    @property
    def models(self) -> "PerModel[dict[str, Tensor]]":
        """State dicts for `bilinear.reference.Model`."""
        return PerModel(self, lambda file: {k: file[k] for k in _STATE_KEYS})

    @property
    def histories(self) -> "PerModel[pd.DataFrame]":
        """Evaluations, a row each."""
        return PerModel(self, _history)

    @property
    def interactions(self) -> "PerModel[Tensor]":
        """Interaction matrices of `config.remainders`, (n_remainders, 2p, 2p), in that order.

        `interaction` finds them by remainder.
        """
        return PerModel(self, lambda file: file["interactions"])

    def read_model(self, job: Job, read: Callable[[dict[str, Tensor]], _T]) -> _T:
        """Read a model's file; raises ResultsError if it is damaged."""
        if job in self.loose:
            name = f"models/{model_file(job)}"
            return _parsed(
                self.folder, name, lambda: read(safetensors.torch.load(self.folder.read(name)))
            )
        pack = self._plan.pack_of(job)
        return self._read_pack(pack, lambda p: read(safetensors.torch.load(p.model(job))))

    def _read_pack(self, pack: int, read: Callable[[Pack], _T]) -> _T:
        return _parsed(self.folder, f"packs/{pack_name(pack)}", lambda: read(self._opened(pack)))

    def _opened(self, pack: int) -> Pack:
        """Keep a few open: models are mostly read in the order of the table."""
        if pack not in self._open:
            while len(self._open) >= _OPEN_PACKS:
                self._open.pop(next(iter(self._open))).close()
            self._open[pack] = Pack(self.folder.open(f"packs/{pack_name(pack)}"))
        return self._open[pack]

    @cached_property
    def _open(self) -> dict[int, Pack]:
        opened: dict[int, Pack] = {}
        weakref.finalize(self, _close_all, opened)
        return opened


def _close_all(packs: dict[int, Pack]) -> None:
    for pack in packs.values():
        pack.close()


_STATE_KEYS = ("bi_linear.weight", "projection.weight")
_OPEN_PACKS = 4


class PerModel(Mapping[tuple[int, int], _T]):
    """One thing of each model's file by (d_hidden, seed), read at every look-up.

    A width alone is that of the sweep's first seed.
    """

    def __init__(self, results: Results, read: Callable[[dict[str, Tensor]], _T]) -> None:
        """Read nothing yet."""
        self._results, self._read = results, read
        self._jobs = dict.fromkeys(results.jobs)

    def __getitem__(self, key: int | tuple[int, int]) -> _T:
        """Read it; raises KeyError for a model that is not there."""
        job = (key, self._results.config.seeds[0]) if isinstance(key, int) else key
        if job not in self._jobs:
            raise KeyError(
                f"model: expected (d_hidden, seed) of {self._results.folder}, got {job}, which is "
                "not in it"
            )
        return self._results.read_model(Job(*job), self._read)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Iterate over the (d_hidden, seed) there are."""
        return iter(self._jobs)

    def __len__(self) -> int:
        """Count the models."""
        return len(self._jobs)


def _history(file: dict[str, Tensor]) -> "pd.DataFrame":
    with extra("sweep"):
        import pandas as pd

    return pd.DataFrame({f: file[f"history.{f}"].numpy() for f in Evaluation._fields})


def _table(rows: list[dict[str, Any]]) -> "pd.DataFrame":
    with extra("sweep"):
        import pandas as pd

    table = pd.DataFrame(rows)
    table["first_perfect_step"] = table["first_perfect_step"].astype("Int64")
    order = table.sort_values(["d_hidden", "seed"], ascending=[False, True])
    return order.reset_index(drop=True)


def row_of(folder: Folder, name: str, content: bytes) -> dict[str, Any]:
    """Return a model's row of the table: metadata in the header of its safetensors file."""

    def parse() -> dict[str, Any]:
        (length,) = struct.unpack("<Q", content[:8])
        row: dict[str, Any] = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["row"])
        return row

    return _parsed(folder, name, parse)


def _parsed(folder: Folder, name: str, parse: Callable[[], _T]) -> _T:
    try:
        return parse()
    except ResultsError:
        raise
    except _DAMAGE as error:
        raise ResultsError(
            f"{folder}/{name}: damaged ({error}); delete it and resume the sweep"
        ) from error


_DAMAGE = (
    OSError, EOFError, zipfile.BadZipFile, safetensors.SafetensorError, struct.error,
    KeyError, TypeError, ValueError,
)  # fmt: skip


def existing_folder(where: str | os.PathLike[str] | Folder) -> Folder:
    """Open a folder to read from; raises ResultsError for a path that is no folder."""
    folder = open_folder(where)
    if folder.path is not None and not folder.path.is_dir():
        raise ResultsError(f"results folder: expected a folder, got {str(folder)!r}")
    return folder


def read_json(folder: Folder, name: str, parse: Callable[[str], _T]) -> _T:
    """Parse a file of a results folder; raises ResultsError if it is missing or damaged."""
    try:
        return parse(folder.read(name).decode())
    except FileNotFoundError as error:
        raise ResultsError(f"{folder}: not a results folder (no {name})") from error
    except ResultsError:
        raise
    except (OSError, ValueError) as error:
        raise ResultsError(f"{folder}/{name}: damaged ({error})") from error


def read_table(folder: Folder) -> "pd.DataFrame | None":
    """Read a folder's `table.parquet`, if it is there."""
    try:
        content = folder.read("table.parquet")
    except FileNotFoundError:
        return None
    with extra("sweep"):
        import pandas as pd

        return pd.read_parquet(io.BytesIO(content))


def encode_table(table: "pd.DataFrame") -> bytes:
    """Write as parquet."""
    content: bytes = table.to_parquet(None, index=False, row_group_size=_ROW_GROUP)
    return content


def encode_json(value: object) -> bytes:
    """Write as JSON, with the same bytes for equal values."""
    return (json.dumps(value, indent=2) + "\n").encode()
