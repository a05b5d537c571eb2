"""A sweep on disk: a folder with its config, one file a model, and at the end a table.

    config.json          the SweepConfig
    environment.json     the backend and versions that trained it
    models/d064-s0000.safetensors   state dict, `history.*` columns, `interactions`, and the model's
                         row of the table as metadata; written when the model ends
    table.parquet        the rows of all models; there once every model is
    summary.json         `bilinear.frontier.frontier` of the table

Every file is written whole under another name, then renamed: what is there can be trusted. Nothing
in the folder depends on when, or in what order, models ended. No pickle is read or written.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from bilinear.config import SweepConfig
from bilinear.errors import ConfigError, ResultsError
from bilinear.interactions import interaction_matrices
from bilinear.training import Evaluation, Finished, Job

if TYPE_CHECKING:
    import pandas as pd

_T = TypeVar("_T")
_INTEGER_COLUMNS = ("step",)


def load_results(path: str | os.PathLike[str]) -> Any:
    """Open the folder of a sweep or of a study, finished or not.

    Returns a `Results` for a sweep, a `bilinear.study_results.StudyResults` for a study of several
    cells. Raises ResultsError for anything else.
    """
    from bilinear.study_results import StudyResults, is_study

    return StudyResults(Path(path)) if is_study(Path(path)) else Results(Path(path))


class Results:
    """A results folder: `config`, `environment`, `table`, and the models by (d_hidden, seed).

    `models[d, s]` is a state dict that `bilinear.reference.Model` loads; `histories[d, s]` a frame
    with a row an evaluation (`bilinear.training.Evaluation`); `interactions[d, s]` the interaction
    matrices of `config.remainders`, (n_remainders, 2p, 2p). All three are read when asked for.
    """

    def __init__(self, path: Path) -> None:
        """Read the config and the list of models there are."""
        if not path.is_dir():
            raise ResultsError(f"results folder: expected a folder, got {str(path)!r}")
        self.path = path
        self.config = read_json(path / "config.json", SweepConfig.from_json)
        self.environment: dict[str, Any] = read_json(path / "environment.json", json.loads)
        jobs = map(_job_of, sorted((path / "models").glob("d*-s*.safetensors")))
        self.jobs = [job for job in jobs if job is not None]

    def __repr__(self) -> str:
        """Say where, what and how many."""
        n = len(self.config.jobs)
        return f"Results({str(self.path)!r}, p={self.config.p}, {len(self.jobs)} of {n} models)"

    @property
    def complete(self) -> bool:
        """Whether every model of the config is there."""
        return len(self.jobs) == len(self.config.jobs)

    @cached_property
    def table(self) -> "pd.DataFrame":
        """A row a model (`bilinear.training.Record.row`), by falling width, then seed."""
        import pandas as pd

        if (self.path / "table.parquet").exists():
            return pd.read_parquet(self.path / "table.parquet")
        return _table([read_row(self.path, job) for job in self.jobs])

    @property
    def models(self) -> Mapping[tuple[int, int], dict[str, Tensor]]:
        """State dicts for `bilinear.reference.Model`."""
        return _PerModel(self, lambda file: {k: file.get_tensor(k) for k in _STATE_KEYS})

    @property
    def histories(self) -> Mapping[tuple[int, int], "pd.DataFrame"]:
        """Evaluations, a row each."""
        return _PerModel(self, _history)

    @property
    def interactions(self) -> Mapping[tuple[int, int], Tensor]:
        """Interaction matrices of `config.remainders`, (n_remainders, 2p, 2p)."""
        return _PerModel(self, lambda file: file.get_tensor("interactions"))


_STATE_KEYS = ("bi_linear.weight", "projection.weight")


class _PerModel(Mapping[tuple[int, int], _T]):
    """One thing of each model's file, read at every look-up."""

    def __init__(self, results: Results, read: Callable[[Any], _T]) -> None:
        self._path, self._jobs, self._read = results.path, dict.fromkeys(results.jobs), read

    def __getitem__(self, key: tuple[int, int]) -> _T:
        if key not in self._jobs:
            raise KeyError(f"(d_hidden, seed) = {tuple(key)} is not in {self._path}")
        return _read_model(self._path, Job(*key), self._read)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._jobs)

    def __len__(self) -> int:
        return len(self._jobs)


def _history(file: Any) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame({f: file.get_tensor(f"history.{f}").numpy() for f in Evaluation._fields})


def _table(rows: list[dict[str, Any]]) -> "pd.DataFrame":
    import pandas as pd

    table = pd.DataFrame(rows)
    table["first_perfect_step"] = table["first_perfect_step"].astype("Int64")
    order = table.sort_values(["d_hidden", "seed"], ascending=[False, True])
    return order.reset_index(drop=True)


def read_row(path: Path, job: Job) -> dict[str, Any]:
    """Read a model's row of the table from its own file."""
    return _read_model(path, job, lambda file: json.loads(file.metadata()["row"]))


def _read_model(path: Path, job: Job, read: Callable[[Any], _T]) -> _T:
    name = _model_path(path, job)
    try:
        with safetensors.safe_open(name, framework="pt") as file:
            return read(file)
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ResultsError(f"{name}: damaged ({error}); delete it and resume the sweep") from error


def read_json(path: Path, parse: Callable[[str], _T]) -> _T:
    """Parse a file of a results folder; raises ResultsError if it is missing or damaged."""
    try:
        return parse(path.read_text())
    except FileNotFoundError as error:
        raise ResultsError(f"{path.parent}: not a results folder (no {path.name})") from error
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: damaged ({error})") from error


def _model_path(path: Path, job: Job) -> Path:
    return path / "models" / f"d{job.d_hidden:03d}-s{job.seed:04d}.safetensors"


def _job_of(path: Path) -> Job | None:
    d, _, seed = path.stem.partition("-")
    return Job(int(d[1:]), int(seed[1:])) if d[1:].isdigit() and seed[1:].isdigit() else None


class ResultsWriter:
    """Fills a results folder, new or begun by an earlier run of the same config."""

    def __init__(self, path: Path, config: SweepConfig, environment: dict[str, Any]) -> None:
        """Make the folder, or check that the one there is this config's and this backend's."""
        self.path, self.config = path, config
        if path.exists() and any(path.iterdir()):
            self._check_same(environment)
        else:
            (path / "models").mkdir(parents=True, exist_ok=True)
            self._write("environment.json", encode_json(environment))
            self._write("config.json", config.to_json().encode())
        for leftover in path.rglob("*.partial"):
            leftover.unlink()

    def _check_same(self, environment: dict[str, Any]) -> None:
        """An interrupted creation has no config yet: it is begun again."""
        if not (self.path / "config.json").exists():
            known = {"environment.json", "models", "config.json.partial"}
            strange = sorted({f.name for f in self.path.iterdir()} - known)
            if strange:
                raise ResultsError(
                    f"out: expected a new folder or a results folder, got {str(self.path)!r}, "
                    f"which holds {strange[0]!r} and no config.json"
                )
            (self.path / "models").mkdir(exist_ok=True)
            self._write("environment.json", encode_json(environment))
            self._write("config.json", self.config.to_json().encode())
            return
        there = Results(self.path)
        if there.config != self.config:
            different = "; ".join(self.config.differences(there.config))
            raise ConfigError(f"out: {str(self.path)!r} belongs to another config ({different})")
        if there.environment != environment:
            raise ConfigError(
                f"out: {str(self.path)!r} was begun with {there.environment}, this is "
                f"{environment}; the bits of its models could differ"
            )

    def finished_jobs(self) -> list[Job]:
        """Models that need no training any more."""
        return Results(self.path).jobs

    def rows(self, jobs: list[Job]) -> list[dict[str, Any]]:
        """Rows of the table of models that are there."""
        return [read_row(self.path, job) for job in jobs]

    def write_model(self, model: Finished) -> None:
        """Write one model's file."""
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
        name = str(_model_path(self.path, model.job).relative_to(self.path))
        self._write(name, safetensors.torch.save(tensors, metadata={"row": row}))

    def finish(self) -> Results:
        """Write the table and the summary once every model is there."""
        from bilinear.frontier import frontier

        table = Results(self.path).table
        write_table(self.path / "table.parquet", table)
        self._write("summary.json", encode_json(frontier(table)))
        return Results(self.path)

    def _write(self, name: str, content: bytes) -> None:
        write_whole(self.path / name, content)


def write_whole(path: Path, content: bytes) -> None:
    """Write under another name, force it to disk, rename; raises OSError, leaving nothing."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def write_table(path: Path, table: "pd.DataFrame") -> None:
    """Write a table as `write_whole` does: encoded first, so that a full disk leaves nothing."""
    write_whole(path, table.to_parquet(None, index=False))


def encode_json(value: object) -> bytes:
    """Write as JSON, with the same bytes for equal values."""
    return (json.dumps(value, indent=2) + "\n").encode()
