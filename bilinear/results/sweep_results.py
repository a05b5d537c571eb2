"""A sweep on disk: a folder with its config, its models, and at the end a table.

    config.json          the SweepConfig
    environment.json     the backend and versions that trained it, which its bits depend on
    SHA256SUMS           digests of these and of the table and the summary (`results.sums`)
    sessions.json        command, date, versions, commit and device of each run
    models/d064-s0000.safetensors   state dict, `history.*` columns, `interactions`, and the model's
                         row of the table, sealed (`results.seal`); written when the model ends
    packs/000000.zip     in a sweep of many models, several in one file (`results.packs`), written
                         once all of them ended
    table.parquet        the rows of all models, written once every model ended
    summary.json         `bilinear.results.frontier.frontier` of the table
    owner.lock           there while a process fills the folder (`results.claim`)
    set-aside/           damaged and unknown files that a resumed run moved away (`results.verify`)

Every file is written whole (`results.folder`) and verified when it is read: a damaged table is made
again from the models, and a damaged model is an error that names its file. In a finished folder
only `sessions.json` depends on when, or in what order, models ended. No pickle is read or written.
"""

import io
import json
import os
import weakref
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from bilinear.errors import ConfigError, OtherVersionError, ResultsError, extra
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.record import Evaluation, Job, Parent, Record, Weights
from bilinear.reading.interactions import interaction_matrices
from bilinear.reference import Model, ModelConfig
from bilinear.results.folder import Folder, Unacceptable, open_folder
from bilinear.results.packs import Pack, Packing, model_file, pack_name
from bilinear.results.seal import (
    Damaged,
    is_sealed,
    most_bytes,
    origin_of,
    tensors_of,
    verified_row,
)
from bilinear.results.sums import SUMS, read_sums, verified

if TYPE_CHECKING:
    import pandas as pd

_T = TypeVar("_T")
_OPTIONAL_INTEGERS = {"first_perfect_step", "parent", "dropped_unit", "redrawn_unit"}
_ROW_GROUP = 2**16
# Files read at a time: a store fetches them at once, and they fit in memory.
_AT_ONCE = 256
_JSON_BYTES = 2**28
_MEND = "the sweep's own command with --out and this folder mends it"


class ResultsFolder:
    """What the folders of a sweep and of a study have in common: verified files, and a path."""

    def __init__(self, where: str | os.PathLike[str] | Folder) -> None:
        """Open the folder and read its digests; raises ResultsError for anything but a folder."""
        self.folder = open_folder(where)
        if self.folder.path is not None and not self.folder.path.is_dir():
            raise ResultsError(f"results folder: expected a folder, got {str(self.folder)!r}")
        self._sums = read_sums(self.folder)
        self.has_digests = self._sums is not None

    @property
    def path(self) -> Path:
        """Where the folder is on this machine; raises ResultsError for one at a URL."""
        if self.folder.path is None:
            raise ResultsError(f"path: expected a folder of this machine, got {self.folder}")
        return self.folder.path

    def has_digest_of(self, name: str, content: bytes) -> bool:
        """Whether a file is what the folder's digests say; True for a folder without them."""
        return self._sums is None or verified(self._sums, name, content)

    def _read(self, name: str) -> bytes:
        """Read a file; raises ResultsError unless it is what its digest says."""
        try:
            content = self.folder.read(name, _JSON_BYTES)
        except FileNotFoundError as error:
            raise ResultsError(f"{self.folder}: not a results folder (no {name})") from error
        if not self.has_digest_of(name, content):
            raise ResultsError(f"{self.folder}/{name}: damaged (not what {SUMS} says); {_MEND}")
        return content

    def _parse(self, name: str, content: bytes, parse: Callable[[str], _T]) -> _T:
        """Parse a file's content; raises ResultsError if it is damaged."""
        try:
            return parse(content.decode())
        except OtherVersionError as error:
            raise ResultsError(f"{self.folder}/{name}: {error}") from error
        except (ValueError, TypeError, RecursionError) as error:
            raise ResultsError(f"{self.folder}/{name}: damaged ({error}); {_MEND}") from error

    def _stored_table(self) -> "pd.DataFrame | None":
        """Read `table.parquet`; None unless it is there, what its digest says, and such a table."""
        try:
            content = self.folder.read("table.parquet")
        except (FileNotFoundError, Unacceptable):
            return None
        if not verified(self._sums, "table.parquet", content):
            return None
        with extra("sweep"):
            import pandas as pd

        try:
            table = pd.read_parquet(io.BytesIO(content))
        except DAMAGE:
            return None
        # Another program may have written the table and its digest.
        wanted = table_of([]).dtypes
        return table if wanted.equals(table.dtypes.reindex(wanted.index)) else None


class Results(ResultsFolder):
    """A results folder: `config`, `environment`, `table`, and the models by (d_hidden, seed).

    `model(d)` is a trained model, `interaction(d, remainder)` one of its interaction matrices.
    `models[d, s]` is a state dict that `bilinear.reference.Model` loads; `histories[d, s]` a frame
    with a row for each evaluation (`experiment.record.Evaluation`); `interactions[d, s]` the
    interaction matrices of `config.remainders`, (n_remainders, 2p, 2p). All three are read from the
    folder at each look-up.
    `packing` says which models and packs the config has, `packs` which packs are there; `loose` are
    the models with a file of their own, `twice` those that are in a pack as well.
    `strange` names files that look like a model's or a pack's and are none of this config's; they
    are not read. `has_digests` is False for a folder of an earlier version.
    """

    def __init__(self, where: str | os.PathLike[str] | Folder) -> None:
        """Read the config and the names of the models that are there."""
        super().__init__(where)
        config, environment = self._read("config.json"), self._read("environment.json")
        self.config = self._parse("config.json", config, SweepConfig.from_json)
        self.environment = self._parse("environment.json", environment, parse_environment)
        self.origin = origin_of(config, environment)
        self.packing = Packing(self.config)
        packs, models = self.folder.names("packs"), self.folder.names("models")
        self.packs, files = self.packing.packs_among(packs), set(self.packing.jobs_among(models))
        known = {*map(pack_name, self.packs), *map(model_file, files)}
        self.strange = [f"packs/{n}" for n in packs if n.endswith(".zip") and n not in known]
        self.strange += [
            f"models/{n}" for n in models if n.endswith(".safetensors") and n not in known
        ]
        packed = {job for pack in self.packs for job in self.packing.jobs(pack)}
        self.loose, self.twice = files - packed, files & packed
        self.jobs = sorted(self.loose | packed)
        self._opened: dict[int, Pack] = {}
        weakref.finalize(self, _close_all, self._opened)

    def __repr__(self) -> str:
        """Say where, what and how many."""
        n = self.packing.models
        return f"Results({str(self.folder)!r}, p={self.config.p}, {len(self.jobs)} of {n} models)"

    @property
    def complete(self) -> bool:
        """Whether every model of the config is there."""
        return len(self.jobs) == self.packing.models

    @cached_property
    def table(self) -> "pd.DataFrame":
        """A row a model (`bilinear.experiment.record.Record.row`), by falling width, then seed.

        Made from the models' files where `table.parquet` is missing or damaged.
        """
        table = self._stored_table() if self.complete else None
        return table_of(self.rows()) if table is None else table

    def rows(self) -> list[dict[str, Any]]:
        """Read the rows of the table from the models' own files."""
        rows = []
        for pack in self.packs:
            with self._naming(f"packs/{pack_name(pack)}"):
                rows += self._open(pack).rows(self.packing.jobs(pack))
        loose = sorted(self.loose)
        for start in range(0, len(loose), _AT_ONCE):
            jobs = loose[start : start + _AT_ONCE]
            most = max(map(self.most_bytes, jobs))
            files = self.folder.read_all([f"models/{model_file(job)}" for job in jobs], most)
            rows += [self.row_of(*file) for file in zip(jobs, files, strict=True)]
        return rows

    def row_of(self, job: Job, content: bytes) -> dict[str, Any]:
        """Return the row of a loose model's file; raises ResultsError if it is damaged."""
        with self._naming(f"models/{model_file(job)}"):
            return self.verified_row(job, content)

    def verified_row(self, job: Job, content: bytes) -> dict[str, Any]:
        """Return the row of a model's file; raises `results.seal.Damaged`, without its name."""
        if self.has_digests and not is_sealed(content):
            raise Damaged("it has no digest")
        return verified_row(content, job, self.origin)

    def most_bytes(self, job: Job) -> int:
        """Return how large a model's file can be at most."""
        return most_bytes(self.config, job.d_hidden)

    def pack(self, pack: int) -> Pack:
        """Open a pack of this folder; raises what `Pack` does. The caller closes it."""
        return Pack(self.folder.open(f"packs/{pack_name(pack)}"))

    def model(self, d_hidden: int, seed: int | None = None) -> Model:
        """Return a trained model, (…, 2p) → logits (…, p), whose weights require no gradient.

        It is an argument for everything in `bilinear.reading`. `seed` None is the sweep's first
        seed. Raises KeyError for a model that is not there.
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
        return PerModel(self, lambda file: {k: file[k] for k in STATE_KEYS})

    @property
    def histories(self) -> "PerModel[pd.DataFrame]":
        """Evaluations, a row each."""
        return PerModel(self, _history)

    @property
    def units(self) -> Mapping[tuple[int, int], Tensor]:
        """Of a narrowed sweep: the names (d,) of each model's units; see `record.Lineage`.

        Raises ConfigError for a sweep that isn't narrowed.
        """
        if self.config.narrow is None:
            raise ConfigError("units: expected a narrowed sweep, got one of independent widths")
        return PerModel(self, lambda file: file["units"])

    @property
    def interactions(self) -> "PerModel[Tensor]":
        """Interaction matrices of `config.remainders`, (n_remainders, 2p, 2p), in that order.

        `interaction` finds them by remainder.
        """
        return PerModel(self, lambda file: file["interactions"])

    def read_model(self, job: Job, read: Callable[[dict[str, Tensor]], _T]) -> _T:
        """Read a model's file; raises ResultsError if it is damaged."""
        most, pack = self.most_bytes(job), self.packing.pack_of(job)
        loose = job in self.loose
        with self._naming(f"models/{model_file(job)}" if loose else f"packs/{pack_name(pack)}"):
            if loose:
                content = self.folder.read(f"models/{model_file(job)}", most)
            else:
                content = self._open(pack).model(job, most)
            self.verified_row(job, content)
            return read(tensors_of(content))

    def _open(self, pack: int) -> Pack:
        """Open a pack and keep it open: models are mostly read in the order of the table."""
        if pack not in self._opened:
            while len(self._opened) >= _OPEN_PACKS:
                self._opened.pop(next(iter(self._opened))).close()
            self._opened[pack] = self.pack(pack)
        return self._opened[pack]

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Turn what damaged bytes raise into an error that names the file."""
        try:
            yield
        except ResultsError:
            raise
        except DAMAGE as error:
            again = "resume the sweep, and it is trained again"
            raise ResultsError(f"{self.folder}/{name}: damaged ({error}); {again}") from error


def _close_all(packs: dict[int, Pack]) -> None:
    for pack in packs.values():
        pack.close()


STATE_KEYS = ("bi_linear.weight", "projection.weight")
_OPEN_PACKS = 4


class PerModel(Mapping[tuple[int, int], _T]):
    """One part of each model's file by (d_hidden, seed), read at every look-up.

    A width alone stands for (width, the sweep's first seed).
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


def parent_of(file: dict[str, Tensor]) -> Parent:
    """The weights and units in a narrowed model's file, from which narrower models start."""
    w_l, w_r = file["bi_linear.weight"].chunk(2)
    weights = Weights(w_l.clone(), w_r.clone(), file["projection.weight"].clone())
    return Parent(weights, tuple(file["units"].tolist()))


def _history(file: dict[str, Tensor]) -> "pd.DataFrame":
    with extra("sweep"):
        import pandas as pd

    return pd.DataFrame({f: file[f"history.{f}"].numpy() for f in Evaluation._fields})


def table_of(rows: list[dict[str, Any]]) -> "pd.DataFrame":
    """Make the table of rows in any order."""
    with extra("sweep"):
        import pandas as pd

    table = pd.DataFrame(rows) if rows else pd.DataFrame([_any_row()])[:0]
    for name in _OPTIONAL_INTEGERS.intersection(table.columns):
        table[name] = table[name].astype("Int64")
    order = table.sort_values(["d_hidden", "seed"], ascending=[False, True])
    return order.reset_index(drop=True)


def _any_row() -> dict[str, Any]:
    """A row that gives a table of no models its columns."""
    record = Record(SweepConfig())
    record.add(1, 0.0, 0.0, 0, 0, 0.0)
    return record.row(Job(1, 0))


# What damaged bytes make a reader raise.
DAMAGE = (
    OSError, EOFError, zipfile.BadZipFile, KeyError, TypeError, ValueError, RecursionError,
    NotImplementedError, AttributeError, OverflowError, MemoryError,
)  # fmt: skip


def parse_environment(text: str) -> dict[str, str]:
    """Parse `environment.json`; raises ValueError for anything but an object of texts."""
    found = json.loads(text)
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise ValueError("expected an object of texts")
    if "backend" not in found:
        raise ValueError("expected a backend")
    return found


def encode_table(table: "pd.DataFrame") -> bytes:
    """Write as parquet."""
    content: bytes = table.to_parquet(None, index=False, row_group_size=_ROW_GROUP)
    return content


def encode_json(value: object) -> bytes:
    """Write as JSON, with the same bytes for equal values."""
    return (json.dumps(value, indent=2) + "\n").encode()
