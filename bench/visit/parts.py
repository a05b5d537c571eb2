"""The parts of a visit to a GPU, the most valuable first, and how long each one's turn is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.visit import ceilings, counters, layer, smoke, sweep, tests, tiles
from bench.visit.items import Item, Visit


def _nothing(content: dict[str, Any], visit: Visit) -> None:
    """Add nothing: the part has no figures that are computed from several items."""


@dataclass(frozen=True)
class Part:
    """`items` returns them, most valuable first; `finish` adds figures computed from several.

    In `turn` seconds the part starts its next items, then other parts have theirs.
    """

    items: Callable[[Visit], list[Item]]
    turn: float
    finish: Callable[[dict[str, Any], Visit], None] = _nothing


PARTS: dict[str, Part] = {
    "smoke": Part(smoke.items, turn=120),
    "tests": Part(tests.items, turn=90),
    "roofs": Part(ceilings.items, turn=20),
    "tiles": Part(tiles.items, turn=60, finish=tiles.finish),
    "sweep": Part(sweep.items, turn=60),
    "layer": Part(layer.items, turn=90, finish=layer.finish),
    "counters": Part(counters.items, turn=45, finish=counters.finish),
    "frontier": Part(sweep.frontier_items, turn=30),
}


def file_of(part: str, folder: Path) -> Path:
    """Return the path of a part's file."""
    return folder / f"gpu-{part}.json"
