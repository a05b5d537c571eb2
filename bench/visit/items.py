"""Items, of which a part of a visit consists: most valuable first, each saved when it is done."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# Seconds that an item may take in a dry run.
_QUICK_SECONDS = 60.0


@dataclass(frozen=True)
class Visit:
    """Where to measure, how thoroughly, until when (seconds of the epoch), and where logs go."""

    device: torch.device
    quick: bool
    end: float
    logs: Path

    @property
    def left(self) -> float:
        """Seconds until the clock ends."""
        return self.end - time.time()

    def at_most(self, seconds: float) -> float:
        """Seconds that something may take that starts now and needs at most `seconds`."""
        return max(1.0, min(_QUICK_SECONDS if self.quick else seconds, self.left))


@dataclass(frozen=True)
class Item:
    """One thing to measure, by its key in the part's file.

    It is not begun with less than `least` seconds on the clock, and is ended `most` seconds after
    its start. `run` returns what goes into the file.
    """

    key: str
    run: Callable[[Visit], dict[str, Any]]
    least: float = 10.0
    most: float = 120.0

    def seconds(self, visit: Visit) -> float:
        """Seconds that the item may take if it starts now."""
        return visit.at_most(self.most)


def write(path: Path, content: dict[str, Any]) -> None:
    """Replace a JSON file at once: a kill leaves the old one or the new one."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(new, path)


def read(path: Path) -> dict[str, Any]:
    """Read a part's file; an empty dictionary if there is none."""
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text())
    return found
