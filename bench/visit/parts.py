"""The parts of a visit to a GPU, the most valuable first: time may run out before the last."""

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
    """`items` returns them, most valuable first; `finish` adds figures computed from several."""

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
    """Return the path of a part's file."""
    return folder / f"gpu-{part}.json"
