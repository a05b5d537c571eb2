"""Items that fail on purpose: a dry run shows that a failure loses no other item's result."""

import os
import time

import torch

from bench.visit.items import Item, Visit


def _compile_error(visit: Visit) -> dict:
    raise RuntimeError("PassManager::run failed")


def _out_of_memory(visit: Visit) -> dict:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1024 GiB")


def _hang(visit: Visit) -> dict:
    time.sleep(3600)
    return {}


def _crash(visit: Visit) -> dict:
    os._exit(139)


WAYS = {
    "a compile error": _compile_error,
    "out of memory": _out_of_memory,
    "a time-out": _hang,
    "a crash": _crash,
}


class _Brief(Item):
    """An item that is stopped after two seconds, also in a dry run."""

    def seconds(self, visit: Visit) -> float:
        return 2.0


def among(items: list[Item], turn: int) -> list[Item]:
    """Insert an item that fails after the first; `turn`, the part's index, chooses how it fails."""
    name, run = list(WAYS.items())[turn % len(WAYS)]
    return [*items[:1], _Brief(f"stand-in: {name}", run), *items[1:]]
