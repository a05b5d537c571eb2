"""A study on disk: a folder with one results folder a cell, and at the end one table of all.

study.json           the Study
SHA256SUMS           digests of this, the table and the summary
cells/p64-f0.75-lr0.05-wd0.4/   that cell as a sweep's folder (`bilinear.results.sweep_results`)
table.parquet        the rows of all cells, with their settings, written once every model ended
summary.json         `bilinear.results.frontier.frontier` of each cell
"""

import os
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bilinear.errors import ConfigError, ResultsError, extra
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.study import AXES, Study, cell_name, settings
from bilinear.results.claim import is_claim
from bilinear.results.folder import Folder, final_name, open_folder
from bilinear.results.frontier import frontier
from bilinear.results.sums import SUMS, write_summed
from bilinear.results.sweep_results import (
    Results,
    ResultsFolder,
    encode_json,
    encode_table,
)

if TYPE_CHECKING:
    import pandas as pd

_STUDY = "study.json"
_PICTURE = re.compile(r"accuracy\.png|perfect-p[0-9]+\.png")
_BEGUN = {"config.json", "models", "packs"}
_FINISHED = {_STUDY, SUMS, "table.parquet", "summary.json", "sessions.json"}


def is_study(where: str | os.PathLike[str] | Folder) -> bool:
    """Whether a folder holds a study, begun or finished."""
    return open_folder(where).exists(_STUDY)


class StudyResults(ResultsFolder):
    """A study's folder: `study`, `table`, and the cells, each a `results.sweep_results.Results`."""

    def __init__(self, where: str | os.PathLike[str] | Folder) -> None:
        """Read the study; raises ResultsError for anything else."""
        super().__init__(where)
        self.study = self._parse(_STUDY, self._read(_STUDY), Study.from_json)

    def __repr__(self) -> str:
        """Say where, and how many cells have begun."""
        return f"StudyResults({str(self.folder)!r}, {len(self.begun)} of {len(self.study)} cells)"

    @cached_property
    def begun(self) -> list[Results]:
        """Results of the cells whose folders are begun, in the study's order."""
        folders = [cell_folder(self.folder, cell) for cell in self.study]
        return [Results(folder) for folder in folders if _BEGUN & set(folder.names())]

    @property
    def complete(self) -> bool:
        """Whether every model of every cell is there."""
        return len(self.begun) == len(self.study) and all(r.complete for r in self.begun)

    def cell(self, **wanted: float) -> Results:
        """Return the one cell with these settings, e.g. `cell(p=59, lr=0.05)`.

        Raises ConfigError for a name that is no setting, and unless exactly one cell fits.
        """
        for name in wanted:
            if name not in AXES:
                raise ConfigError(f"cell: expected settings among {', '.join(AXES)}, got {name}")
        fits = [r for r in self.begun if wanted.items() <= settings(r.config).items()]
        if len(fits) != 1:
            raise ConfigError(
                f"cell: expected settings that fit one cell, {wanted} fit {len(fits)}"
            )
        return fits[0]

    @cached_property
    def table(self) -> "pd.DataFrame":
        """A row for each model: AXES, then the columns of `Results.table`, cell after cell."""
        table = self._stored_table() if self.complete else None
        return self.table_of_cells() if table is None else table

    def table_of_cells(self) -> "pd.DataFrame":
        """Make the table from the tables of the cells."""
        with extra("sweep"):
            import pandas as pd

        tables = [
            r.table.assign(**settings(r.config))[[*AXES, *r.table.columns]]
            for r in self.begun
            if r.jobs
        ]
        if not tables:
            raise ResultsError(f"{self.folder}: no model of this study has ended yet")
        return pd.concat(tables, ignore_index=True)

    def summary(self) -> dict[str, Any]:
        """Return the settings and the frontier of every cell that holds a model."""
        cells = [settings(r.config) | frontier(r.table) for r in self.begun if r.jobs]
        return {
            "models": sum(cell["models"] for cell in cells),
            "perfect": sum(cell["perfect"] for cell in cells),
            "cells": cells,
        }


def cell_folder(folder: Folder, cell: SweepConfig) -> Folder:
    """Return the folder of a cell in a study's folder."""
    return folder.child(f"cells/{cell_name(cell)}")


def check_study(folder: Folder, study: Study) -> bool:
    """Whether `study.json` is to be written, as the folder is new or damaged; writes nothing.

    Raises ResultsError for a folder that holds something else, ConfigError for another study.
    """
    if is_study(folder):
        error, there = None, _readable(folder)
        try:
            there = StudyResults(folder).study
        except ResultsError as damage:
            error = damage
        if there is None and error is not None:
            _check_mendable(folder, study, error)
        elif there != study:
            raise ConfigError(f"out: {str(folder)!r} belongs to another study")
        return error is not None
    strange = ResultsError(f"out: expected a new folder or this study's, got {str(folder)!r}")
    _check_mendable(folder, study, strange)
    return True


def _readable(folder: Folder) -> Study | None:
    """Return the study in `study.json` without a look at its digest; None if there is none."""
    try:
        return Study.from_json(folder.read(_STUDY).decode())
    except (OSError, ValueError, RecursionError):
        return None


def _check_mendable(folder: Folder, study: Study, error: ResultsError) -> None:
    """Raise `error` unless every name in the folder is one that this study may have written."""
    names = set(folder.names()) - _FINISHED
    left = {
        name
        for name in names
        if not (is_claim(name) or final_name(name) in _FINISHED or _PICTURE.fullmatch(name))
    }
    cells = {cell_name(cell) for cell in study}
    there = set(folder.names("cells"))
    # Beside cells of this study a file of the user's own is not refused.
    if there - cells or (left - {"cells"} and not there):
        raise error


def begin_study(folder: Folder, study: Study) -> None:
    """Make a study's folder, or check that the one there is this study's.

    Raises what `check_study` does. The caller holds the folder's claim.
    """
    if check_study(folder, study):
        write_summed(folder, {_STUDY: study.to_json().encode()}, last=_STUDY)
    folder.sweep_up("", lambda name: name in _FINISHED or name.endswith(".png"))


def finish_study(folder: Folder) -> StudyResults:
    """Write the table and the summary once every cell is complete."""
    results = StudyResults(folder)
    table = results.table_of_cells()
    files = {"table.parquet": encode_table(table), "summary.json": encode_json(results.summary())}
    write_summed(folder, files | {_STUDY: folder.read(_STUDY)})
    return StudyResults(folder)
