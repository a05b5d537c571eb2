"""Run a sweep into a results folder: train the models it lacks, write each as it ends."""

import os
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bilinear.errors import ConfigError, ResultsError
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.record import Finished, Job, Parent, Progress
from bilinear.experiment.study import Study
from bilinear.results.begin import check_whose
from bilinear.results.claim import Claim, claim
from bilinear.results.folder import Folder, open_folder
from bilinear.results.study_results import (
    StudyResults,
    begin_study,
    cell_folder,
    check_study,
    finish_study,
    is_study,
)
from bilinear.results.sweep_results import Results, parent_of
from bilinear.results.writer import ResultsWriter
from bilinear.training.backend import Backend, Work, environment
from bilinear.training.room import check_room


@dataclass(frozen=True)
class Resumed:
    """Rows of the table of models that an earlier run of the same sweep wrote to the folder.

    `mended` has a message for each file that was damaged: what is done about it.
    """

    rows: list[dict[str, Any]]
    mended: Sequence[str] = ()


def fresh_folder(study: Study, parent: Path = Path("runs")) -> Path:
    """Name a folder that does not exist yet, by what is trained and the time."""
    what = "study" if len(study) > 1 else f"p{study.cells[0].p}"
    stem = f"{what}-{datetime.now():%Y%m%d-%H%M%S}"
    path, n = parent / stem, 1
    while path.exists():
        n += 1
        path = parent / f"{stem}-{n}"
    return path


def latest_folder(study: Study, parent: Path = Path("runs")) -> Path:
    """Find the folder of the last run of `study`; raises ConfigError if there is none."""
    for path in sorted(parent.iterdir() if parent.is_dir() else [], reverse=True):
        try:
            if _study_of(path) == study:
                return path
        except (ValueError, OSError, RecursionError):
            continue
    raise ConfigError(f"resume: no folder under {parent} holds a run of these settings")


def _study_of(path: Path) -> Study:
    if is_study(path):
        return Study.from_json((path / "study.json").read_text())
    return Study((SweepConfig.from_json((path / "config.json").read_text()),))


def run_sweep(
    config: SweepConfig,
    backend: Backend,
    out: str | os.PathLike[str],
    on_event: Callable[[Resumed | Progress | Finished], None] = lambda event: None,
    then: Callable[[Results], None] = lambda results: None,
) -> Results:
    """Train every model of `config` that `out` does not hold yet, and finish the folder.

    After a kill the same call goes on, and the folder ends with the same bits: models that were in
    training begin again from their seeds, or on a GPU from their last checkpoint. Files in `out`
    are verified first; damaged ones are set aside and their models trained again. `then` is called
    before another process may use the folder.

    Raises ConfigError if `out` belongs to another config or backend, or another process is filling
    it, and OSError or ResultsError if it can't be written.
    """
    folder = open_folder(out)
    check_whose(folder, config, environment(backend))
    check_room([config], backend, folder)
    with claim(folder) as held:
        _run([(config, folder)], backend, lambda index, event: on_event(event), held)
        results = Results(folder)
        then(results)
    return results


def run_study(
    study: Study,
    backend: Backend,
    out: str | os.PathLike[str],
    on_event: Callable[[int, Resumed | Progress | Finished], None] = lambda index, event: None,
    then: Callable[[StudyResults], None] = lambda results: None,
) -> StudyResults:
    """Train every model of each cell that `out` does not hold yet, and finish the folder.

    `on_event` gets the index of the cell first. Otherwise as `run_sweep`: it goes on after a kill,
    and raises the same errors.
    """
    folder = open_folder(out)
    check_study(folder, study)
    check_room(study.cells, backend, folder)
    with claim(folder) as held:
        begin_study(folder, study)
        _run([(cell, cell_folder(folder, cell)) for cell in study], backend, on_event, held)
        results = finish_study(folder)
        then(results)
    return results


def _run(
    cells: Sequence[tuple[SweepConfig, Folder]],
    backend: Backend,
    on_event: Callable[[int, Resumed | Progress | Finished], None],
    held: Claim,
) -> None:
    """Fill each cell's folder; one is finished as soon as its last model has ended."""
    writers = [ResultsWriter(out, config, environment(backend)) for config, out in cells]
    work: list[Work] = []
    for index, writer in enumerate(writers):
        done = set(writer.there.jobs)
        if done or writer.mended:
            on_event(index, Resumed(writer.rows, writer.mended))
        jobs = [job for job in map(Job._make, writer.config.jobs) if job not in done]
        here = writer.folder.path
        scratch = None if here is None else here / "in-training"
        work.append(Work(writer.config, jobs, scratch, _parents(writer.there, jobs)))
    left = [len(w.jobs) for w in work]
    for index, writer in enumerate(writers):
        if not left[index]:
            writer.finish()
    holding: set[int] = set()
    try:
        with closing(backend.train(work)) as events:  # type: ignore[type-var]
            for index, event in events:
                held.check()
                if isinstance(event, Finished):
                    writers[index].write_model(event)
                    left[index] -= 1
                    if not left[index]:
                        writers[index].finish()
                _settle(writers, holding, index)
                on_event(index, event)
    except BaseException:
        # If writing these fails as well, the error that stopped the run is the one to report.
        with suppress(OSError, ResultsError):
            for index in holding:
                writers[index].settle(now=True)
        raise


def _parents(there: Results, jobs: Sequence[Job]) -> dict[Job, Parent]:
    """Models in the folder from which narrowed jobs start."""
    wider = {Job(d, job.seed) for job in jobs if (d := there.config.parent(job.d_hidden))}
    return {job: there.read_model(job, parent_of) for job in wider.intersection(there.jobs)}


def _settle(writers: Sequence[ResultsWriter], holding: set[int], latest: int) -> None:
    """Write models that writers held long enough, of any cell, not only the latest event's."""
    holding.add(latest)
    for index in list(holding):
        writers[index].settle()
        if not writers[index].holds:
            holding.discard(index)
