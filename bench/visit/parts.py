"""The parts of a visit, in order of worth."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.visit import ceilings, counters, layer, smoke, sweep, tests, tiles
from bench.visit.items import Item, Visit


def _nothing(content: dict[str, Any], visit: Visit) -> None:
    """A part whose items are all it has."""


@dataclass(frozen=True)
class Part:
    """`items` in order of worth; `finish` adds to the file what rests on several of them."""

    items: Callable[[Visit], list[Item]]
    finish: Callable[[dict[str, Any], Visit], None] = _nothing


PARTS: dict[str, Part] = {
    "smoke": Part(smoke.items),
    "tests": Part(tests.items),
    "roofs": Part(ceilings.items),
    "tiles": Part(tiles.items, tiles.finish),
    "sweep": Part(sweep.items),
    "layer": Part(layer.items, layer.finish),
    "counters": Part(counters.items, counters.finish),
    "frontier": Part(sweep.frontier_items),
}


def file_of(part: str, folder: Path) -> Path:
    """Where a part is kept."""
    return folder / f"gpu-{part}.json"
