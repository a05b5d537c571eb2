"""A study on disk: a folder with one results folder a cell, and at the end one table of all.

study.json           the Study
cells/p64-f0.75-lr0.05-wd0.4/   what `bilinear.results` writes for that cell by itself
table.parquet        the rows of all cells, with their settings; there once every model is
summary.json         `bilinear.frontier.frontier` of each cell
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bilinear.config import SweepConfig
from bilinear.errors import ConfigError, ResultsError
from bilinear.frontier import frontier
from bilinear.results import Results, encode_json, read_json, write_table, write_whole
from bilinear.study import AXES, Study, cell_name, settings

if TYPE_CHECKING:
    import pandas as pd

_STUDY = "study.json"


def is_study(path: Path) -> bool:
    """Whether a folder holds a study, begun or finished."""
    return (path / _STUDY).exists()


class StudyResults:
    """A study's folder: `study`, `table`, and the cells, each a `bilinear.results.Results`."""

    def __init__(self, path: Path) -> None:
        """Read the study; raises ResultsError for anything else."""
        if not path.is_dir():
            raise ResultsError(f"results folder: expected a folder, got {str(path)!r}")
        self.path = path
        self.study: Study = read_json(path / _STUDY, Study.from_json)

    def __repr__(self) -> str:
        """Say where, and how many cells have begun."""
        return f"StudyResults({str(self.path)!r}, {len(self.begun)} of {len(self.study)} cells)"

    @cached_property
    def begun(self) -> list[Results]:
        """Cells of which there is something to read, in the study's order."""
        folders = [cell_folder(self.path, cell) for cell in self.study]
        return [Results(folder) for folder in folders if (folder / "config.json").exists()]

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
        """A row a model: AXES, then the columns of `Results.table`; cells in the study's order."""
        import pandas as pd

        if (self.path / "table.parquet").exists():
            return pd.read_parquet(self.path / "table.parquet")
        tables = list(self._tables())
        if not tables:
            raise ResultsError(f"{self.path}: no model of this study has ended yet")
        return pd.concat(tables, ignore_index=True)

    def _tables(self) -> Iterator["pd.DataFrame"]:
        for results in self.begun:
            if not results.jobs:
                continue
            table = results.table.copy()
            for i, (name, value) in enumerate(settings(results.config).items()):
                table.insert(i, name, value)
            yield table

    def summary(self) -> dict[str, Any]:
        """Return the settings and the frontier of every cell that holds a model."""
        cells = [settings(r.config) | frontier(r.table) for r in self.begun if r.jobs]
        return {
            "models": sum(cell["models"] for cell in cells),
            "perfect": sum(cell["perfect"] for cell in cells),
            "cells": cells,
        }


def cell_folder(path: Path, cell: SweepConfig) -> Path:
    """Say where in a study's folder a cell is."""
    return path / "cells" / cell_name(cell)


def begin_study(path: Path, study: Study) -> None:
    """Make a study's folder, or check that the one there is this study's.

    Raises ResultsError for a folder that holds something else, ConfigError for another study.
    """
    partial = path / f"{_STUDY}.partial"
    if is_study(path):
        if StudyResults(path).study != study:
            raise ConfigError(f"out: {str(path)!r} belongs to another study")
    elif path.exists() and any(entry != partial for entry in path.iterdir()):
        raise ResultsError(f"out: expected a new folder or this study's, got {str(path)!r}")
    path.mkdir(parents=True, exist_ok=True)
    for leftover in path.glob("*.partial"):
        leftover.unlink()
    if not is_study(path):
        write_whole(path / _STUDY, study.to_json().encode())


def finish_study(path: Path) -> StudyResults:
    """Write the table and the summary once every cell is complete."""
    results = StudyResults(path)
    write_table(path / "table.parquet", results.table)
    write_whole(path / "summary.json", encode_json(results.summary()))
    return results
