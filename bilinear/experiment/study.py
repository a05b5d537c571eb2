"""What a study trains: sweeps that differ in modulus, train fraction, learning rate and decay."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bilinear.errors import ConfigError, OtherVersionError
from bilinear.experiment.config import SweepConfig

AXES = ("p", "train_frac", "lr", "weight_decay")
MAX_MODELS = 1_000_000


def settings(config: SweepConfig) -> dict[str, int | float]:
    """Return the value of each of AXES; lr and weight_decay are those of the first step."""
    return {
        "p": config.p,
        "train_frac": config.train_frac,
        "lr": config.lr.start,
        "weight_decay": config.weight_decay.start,
    }


def cell_name(config: SweepConfig) -> str:
    """Name a cell's folder, with exact numbers, so that cells that differ have different names."""
    return "p{p}-f{train_frac!r}-lr{lr!r}-wd{weight_decay!r}".format(**settings(config))


@dataclass(frozen=True)
class Study:
    """Cells in the order in which they run, each a sweep of its own.

    A model's bits depend on its cell, d_hidden and seed alone, so a cell has the same models here
    as in a sweep of its own. Raises ConfigError if two cells agree in all of AXES.
    """

    cells: tuple[SweepConfig, ...]

    def __post_init__(self) -> None:
        """Raise ConfigError for no cells, too many models, or cells that agree in all of AXES."""
        if not self.cells:
            raise ConfigError("study: expected at least one cell, got none")
        seen: set[str] = set()
        for name in map(cell_name, self.cells):
            if name in seen:
                raise ConfigError(f"study: expected each cell once, got {name} again")
            seen.add(name)
        check_size(sum(len(cell.widths) * len(cell.seeds) for cell in self.cells))

    def __iter__(self) -> Iterator[SweepConfig]:
        """Iterate over the cells."""
        return iter(self.cells)

    def __len__(self) -> int:
        """Count the cells."""
        return len(self.cells)

    def to_json(self) -> str:
        """Write as JSON, with the same text for equal studies."""
        cells: list[dict[str, Any]] = [json.loads(cell.to_json()) for cell in self.cells]
        return json.dumps({"cells": cells}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Study":
        """Read what `to_json` wrote; raises ConfigError for anything else."""
        try:
            cells = json.loads(text)["cells"]
            return cls(tuple(SweepConfig.from_json(json.dumps(cell)) for cell in cells))
        except OtherVersionError:
            raise
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ConfigError(f"not a study: {error}") from error


def check_size(models: int) -> None:
    """Raise ConfigError for more models than one results folder supports."""
    if models > MAX_MODELS:
        raise ConfigError(f"study: expected at most {MAX_MODELS:,} models, got {models:,}")
