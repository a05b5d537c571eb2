"""An item: one measurement of a part, saved as soon as it is done."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# The most seconds that an item may take in a dry run (`--quick`).
_QUICK_SECONDS = 60.0


@dataclass(frozen=True)
class Visit:
    """What all items of one call share.

    `quick` is a dry run on small sizes. No item runs beyond `end`, a `time.time()`. Commands write
    their output to files in `logs`.
    """

    device: torch.device
    quick: bool
    end: float
    logs: Path

    @property
    def left(self) -> float:
        """Seconds until `end`."""
        return self.end - time.time()

    def at_most(self, seconds: float) -> float:
        """Limit `seconds` to what is left until `end`, and to a dry run's limit."""
        return max(1.0, min(_QUICK_SECONDS if self.quick else seconds, self.left))


@dataclass(frozen=True)
class Item:
    """One measurement; `key` names it in the part's file.

    It starts only if at least `least` seconds are left until the visit's end, and is stopped after
    `most` seconds. What `run` returns is written to the file; its "told" is printed as a summary.
    """

    key: str
    run: Callable[[Visit], dict[str, Any]]
    least: float = 10.0
    most: float = 120.0

    def seconds(self, visit: Visit) -> float:
        """The most seconds that the item may take if it starts now."""
        return visit.at_most(self.most)


def write(path: Path, content: dict[str, Any]) -> None:
    """Replace a JSON file atomically: a killed process leaves the old file or the new one."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(new, path)


def read(path: Path) -> dict[str, Any]:
    """Read a part's file; returns an empty dictionary if there is none."""
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text())
    return found
