"""Run a sweep into a results folder: train what is not there yet, write each model as it ends."""

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

import bilinear
from bilinear.config import SweepConfig
from bilinear.cost import sweep_cost
from bilinear.errors import ConfigError
from bilinear.results import Results, ResultsWriter
from bilinear.study import Study
from bilinear.study_results import StudyResults, begin_study, cell_folder, finish_study
from bilinear.training import Backend, Finished, Job, Progress


@dataclass(frozen=True)
class Resumed:
    """Models an earlier run of the same sweep left in the folder, as rows of the table."""

    rows: list[dict[str, Any]]


def environment(backend: Backend) -> dict[str, str]:
    """Describe what a model's bits depend on besides the config."""
    return {
        "backend": backend.name,
        "bilinear": bilinear.__version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


def fresh_folder(config: SweepConfig, parent: Path = Path("runs"), stem: str | None = None) -> Path:
    """Name a folder that is not there yet, by `stem` (the modulus) and time."""
    stem = f"{stem or f'p{config.p}'}-{datetime.now():%Y%m%d-%H%M%S}"
    path, n = parent / stem, 1
    while path.exists():
        n += 1
        path = parent / f"{stem}-{n}"
    return path


def latest_folder(config: SweepConfig, parent: Path = Path("runs")) -> Path:
    """Find the folder of the last run of `config`; raises ConfigError if there is none."""
    for path in sorted(parent.glob("*/config.json"), reverse=True):
        try:
            if SweepConfig.from_json(path.read_text()) == config:
                return path.parent
        except ConfigError:
            continue
    raise ConfigError(f"resume: no folder under {parent} holds a sweep of these settings")


def run_sweep(
    config: SweepConfig,
    backend: Backend,
    out: Path,
    on_event: Callable[[Resumed | Progress | Finished], None] = lambda event: None,
) -> Results:
    """Train every model of `config` that `out` does not hold yet, and finish the folder.

    A run that was killed goes on where it stopped, and the folder ends with the same bits: models
    that were in training begin again from their seeds, or on a GPU from their last checkpoint.
    Raises ConfigError if `out` belongs to another config or backend, ResultsError if a file in it
    is damaged, OSError if it can't be written.
    """
    writer = ResultsWriter(out, config, environment(backend))
    done = set(writer.finished_jobs())
    if done:
        on_event(Resumed(writer.rows(sorted(done))))
    jobs = [job for job in map(Job._make, config.jobs) if job not in done]
    for event in _events(backend, config, jobs, out / "in-training"):
        if isinstance(event, Finished):
            writer.write_model(event)
        on_event(event)
    return writer.finish()


def _events(
    backend: Backend, config: SweepConfig, jobs: list[Job], scratch: Path
) -> Iterator[Progress | Finished]:
    if jobs:
        with closing(backend.train(config, jobs, scratch)) as events:  # type: ignore[type-var]
            yield from events


def latest_study(study: Study, parent: Path = Path("runs")) -> Path:
    """Find the folder of the last run of `study`; raises ConfigError if there is none."""
    for path in sorted(parent.glob("*/study.json"), reverse=True):
        try:
            if Study.from_json(path.read_text()) == study:
                return path.parent
        except ConfigError:
            continue
    raise ConfigError(f"resume: no folder under {parent} holds this study")


def run_study(
    study: Study,
    backends: Sequence[Backend],
    out: Path,
    display: Callable[[SweepConfig], AbstractContextManager[Callable[..., None]]],
) -> StudyResults:
    """Train what `out` does not hold yet of every cell, and finish the folder.

    `backends` has one for each cell; `display` is called with a cell and gives what its events go
    to. Killed and started again it goes on, as `run_sweep` does, and raises what that raises.
    """
    begin_study(out, study)
    for cell, backend in zip(study, backends, strict=True):
        with display(cell) as on_event:
            run_sweep(cell, backend, cell_folder(out, cell), on_event)
    return finish_study(out)


def check_space(study: Study, out: Path, free_bytes: int) -> None:
    """Raise ConfigError before anything is written if the folder would not fit."""
    needed = sum(sweep_cost(cell).disk_bytes for cell in study)
    if needed > free_bytes:
        raise ConfigError(
            f"out: expected {needed / 1e6:,.0f} MB of space for {str(out)!r}, "
            f"got {free_bytes / 1e6:,.0f} MB"
        )
