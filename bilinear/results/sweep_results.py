"""A sweep on disk: a folder with its config, its models, and at the end a table.

    config.json          the SweepConfig
    environment.json     the backend and versions that trained it, which its bits depend on
    SHA256SUMS           digests of these and of the table and the summary (`results.sums`)
    sessions.json        who worked on it: command, date, versions, commit, device of each run
    models/d064-s0000.safetensors   state dict, `history.*` columns, `interactions`, and the model's
                         row of the table, sealed (`results.seal`); written when the model ends
    packs/000000.zip     in a sweep of many models, those of `results.packs`, once they all ended
    table.parquet        the rows of all models; there once every model is
    summary.json         `bilinear.results.frontier.frontier` of the table
    owner.lock           while a process fills it (`results.claim`)
    set-aside/           what a resumed run found damaged or strange (`results.verify`)

Every file is written whole (`results.folder`), and verified as it is read: a table that is not what
it was is made again of the models, and a model that is not is named. Nothing in the finished
folder but `sessions.json` depends on when, or in what order, models ended. No pickle is read or
written.
"""

import io
import json
import os
import weakref
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from bilinear.errors import ConfigError, OtherVersionError, ResultsError, extra
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.record import Evaluation, Job, Parent, Record, Weights
from bilinear.reading.interactions import interaction_matrices
from bilinear.reference import Model, ModelConfig
from bilinear.results.folder import Folder, Unacceptable, local_path, open_folder
from bilinear.results.packs import Pack, PackPlan, job_of, model_file, pack_name, pack_of_name
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
# Files read at a time: a store with many round trips at once, a disk without filling the memory.
_AT_ONCE = 256
_JSON_BYTES = 2**28
_MEND = "the sweep's own command with --out and this folder mends it"


class Results:
    """A results folder: `config`, `environment`, `table`, and the models by (d_hidden, seed).

    `model(d)` is a trained model, `interaction(d, remainder)` one of its interaction matrices.
    `models[d, s]` is a state dict that `bilinear.reference.Model` loads; `histories[d, s]` a frame
    with a row an evaluation (`experiment.record.Evaluation`); `interactions[d, s]` the interaction
    matrices of `config.remainders`, (n_remainders, 2p, 2p). All three are read when asked for.
    `plan` says which models and packs the config has, `packs` which packs are there; `loose` are
    the models with a file of their own, `twice` those that are in a pack as well.
    `strange` names files that look like a model's or a pack's and are none of this config's; they
    are not read. `has_digests` is False for a folder of an earlier version.
    """

    def __init__(self, where: str | os.PathLike[str] | Folder) -> None:
        """Read the config and the list of models there are."""
        self.folder = existing_folder(where)
        sums = read_sums(self.folder)
        self.has_digests = sums is not None
        config = read_verified(self.folder, "config.json", sums)
        environment = read_verified(self.folder, "environment.json", sums)
        self.config = parse_json(self.folder, "config.json", config, SweepConfig.from_json)
        self.environment: dict[str, str] = parse_json(
            self.folder, "environment.json", environment, parse_environment
        )
        self.origin = origin_of(config, environment)
        self._sums = sums
        self.plan = PackPlan(self.config)
        self.strange: list[str] = []
        self.packs = self._found_packs()
        packed = {job for pack in self.packs for job in self.plan.jobs(pack)}
        loose = self._found_models()
        self.loose, self.twice = loose - packed, loose & packed
        self.jobs = sorted(self.loose | packed)

    def _found_packs(self) -> list[int]:
        packs = []
        for name in self.folder.names("packs"):
            pack = pack_of_name(name)
            if pack is not None and pack < self.plan.packs:
                packs.append(pack)
            elif name.endswith(".zip"):
                self.strange.append(f"packs/{name}")
        return packs

    def _found_models(self) -> set[Job]:
        jobs = set()
        for name in self.folder.names("models"):
            job = job_of(name)
            if job is not None and job in self.plan:
                jobs.add(job)
            elif name.endswith(".safetensors"):
                self.strange.append(f"models/{name}")
        return jobs

    def __repr__(self) -> str:
        """Say where, what and how many."""
        n = self.plan.models
        return f"Results({str(self.folder)!r}, p={self.config.p}, {len(self.jobs)} of {n} models)"

    @property
    def path(self) -> Path:
        """Where the folder is on this machine; raises ResultsError for one at a URL."""
        return local_path(self.folder)

    @property
    def complete(self) -> bool:
        """Whether every model of the config is there."""
        return len(self.jobs) == self.plan.models

    @cached_property
    def table(self) -> "pd.DataFrame":
        """A row a model (`bilinear.experiment.record.Record.row`), by falling width, then seed.

        Made of the models' own rows unless the file of a finished sweep is what it was.
        """
        table = read_table(self.folder, self._sums) if self.complete else None
        return table_of(self.rows()) if table is None else table

    def rows(self) -> list[dict[str, Any]]:
        """Read the rows of the table from the models' own files."""
        packed = [
            row
            for pack in self.packs
            for row in self._read_pack(pack, partial(Pack.rows, jobs=self.plan.jobs(pack)))
        ]
        loose = sorted(self.loose)
        for start in range(0, len(loose), _AT_ONCE):
            jobs = loose[start : start + _AT_ONCE]
            most = max(map(self.most_bytes, jobs))
            files = self.folder.read_all([f"models/{model_file(job)}" for job in jobs], most)
            packed += [self.row_of(*file) for file in zip(jobs, files, strict=True)]
        return packed

    def row_of(self, job: Job, content: bytes) -> dict[str, Any]:
        """Return the row of a loose model's file; raises ResultsError if it is damaged."""
        name = f"models/{model_file(job)}"
        return _parsed(self.folder, name, lambda: self.verified_row(job, content))

    def verified_row(self, job: Job, content: bytes) -> dict[str, Any]:
        """Return the row of a model's file; raises `results.seal.Damaged`, saying no name."""
        if self.has_digests and not is_sealed(content):
            raise Damaged("it has no digest")
        return verified_row(content, job, self.origin)

    def most_bytes(self, job: Job) -> int:
        """Return how large a model's file can be at most."""
        return most_bytes(self.config, job.d_hidden)

    def has_digest_of(self, name: str, content: bytes) -> bool:
        """Whether a file is what the folder's digests say; True for a folder without them."""
        return not self.has_digests or verified(self._sums, name, content)

    def jobs_of(self, pack: int) -> list[Job]:
        """Return a pack's models, in its order."""
        return self.plan.jobs(pack)

    def pack(self, pack: int) -> Pack:
        """Open a pack of this folder; raises what `Pack` does. The caller closes it."""
        return Pack(self.folder.open(f"packs/{pack_name(pack)}"))

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

        def checked(content: bytes) -> _T:
            self.verified_row(job, content)
            return read(tensors_of(content))

        most = self.most_bytes(job)
        if job in self.loose:
            name = f"models/{model_file(job)}"
            return _parsed(self.folder, name, lambda: checked(self.folder.read(name, most)))
        pack = self.plan.pack_of(job)
        return self._read_pack(pack, lambda p: checked(p.model(job, most)))

    def _read_pack(self, pack: int, read: Callable[[Pack], _T]) -> _T:
        return _parsed(self.folder, f"packs/{pack_name(pack)}", lambda: read(self._opened(pack)))

    def _opened(self, pack: int) -> Pack:
        """Keep a few open: models are mostly read in the order of the table."""
        if pack not in self._open:
            while len(self._open) >= _OPEN_PACKS:
                self._open.pop(next(iter(self._open))).close()
            self._open[pack] = self.pack(pack)
        return self._open[pack]

    @cached_property
    def _open(self) -> dict[int, Pack]:
        opened: dict[int, Pack] = {}
        weakref.finalize(self, _close_all, opened)
        return opened


def _close_all(packs: dict[int, Pack]) -> None:
    for pack in packs.values():
        pack.close()


STATE_KEYS = ("bi_linear.weight", "projection.weight")
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


def parent_of(file: dict[str, Tensor]) -> Parent:
    """A narrowed model's file as narrower models start from it."""
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
    """A row for the sake of its columns: a table of no models has the same ones."""
    record = Record(SweepConfig())
    record.add(1, 0.0, 0.0, 0, 0, 0.0)
    return record.row(Job(1, 0))


def _parsed(folder: Folder, name: str, parse: Callable[[], _T]) -> _T:
    try:
        return parse()
    except ResultsError:
        raise
    except DAMAGE as error:
        raise ResultsError(
            f"{folder}/{name}: damaged ({error}); resume the sweep, and it is trained again"
        ) from error


# What damaged bytes make a reader raise.
DAMAGE = (
    OSError, EOFError, zipfile.BadZipFile, KeyError, TypeError, ValueError, RecursionError,
    NotImplementedError, AttributeError, OverflowError, MemoryError,
)  # fmt: skip


def existing_folder(where: str | os.PathLike[str] | Folder) -> Folder:
    """Open a folder to read from; raises ResultsError for a path that is no folder."""
    folder = open_folder(where)
    if folder.path is not None and not folder.path.is_dir():
        raise ResultsError(f"results folder: expected a folder, got {str(folder)!r}")
    return folder


def read_verified(
    folder: Folder, name: str, sums: Mapping[str, str] | None, most: int = _JSON_BYTES
) -> bytes:
    """Read a file of a results folder; raises ResultsError unless it is what its digest says."""
    try:
        content = folder.read(name, most)
    except FileNotFoundError as error:
        raise ResultsError(f"{folder}: not a results folder (no {name})") from error
    if sums is not None and not verified(sums, name, content):
        raise ResultsError(f"{folder}/{name}: damaged (not what {SUMS} says); {_MEND}")
    return content


def parse_json(folder: Folder, name: str, content: bytes, parse: Callable[[str], _T]) -> _T:
    """Parse a file of a results folder; raises ResultsError if it is damaged."""
    try:
        return parse(content.decode())
    except OtherVersionError as error:
        raise ResultsError(f"{folder}/{name}: {error}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ResultsError(f"{folder}/{name}: damaged ({error}); {_MEND}") from error


def parse_environment(text: str) -> dict[str, str]:
    """Parse `environment.json`; raises ValueError for anything but names and texts."""
    found = json.loads(text)
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise ValueError("expected an object of texts")
    if "backend" not in found:
        raise ValueError("expected a backend")
    return found


def read_table(folder: Folder, sums: Mapping[str, str] | None) -> "pd.DataFrame | None":
    """Read a folder's `table.parquet`, if it is there, what its digest says, and such a table."""
    try:
        content = folder.read("table.parquet")
    except (FileNotFoundError, Unacceptable):
        return None
    if not verified(sums, "table.parquet", content):
        return None
    with extra("sweep"):
        import pandas as pd

    try:
        table = pd.read_parquet(io.BytesIO(content))
    except DAMAGE:
        return None
    # Another program may have written it, and its digest.
    wanted = table_of([]).dtypes
    return table if wanted.equals(table.dtypes.reindex(wanted.index)) else None


def encode_table(table: "pd.DataFrame") -> bytes:
    """Write as parquet."""
    content: bytes = table.to_parquet(None, index=False, row_group_size=_ROW_GROUP)
    return content


def encode_json(value: object) -> bytes:
    """Write as JSON, with the same bytes for equal values."""
    return (json.dumps(value, indent=2) + "\n").encode()
