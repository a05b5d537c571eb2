"""Contests in a results file of pytest-benchmark: ways to do one thing, and the fastest."""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

# The ways that users get by default; our other ways are shown, but take no part in the verdict.
DEFAULTS = ("fused", "compiled", "span")
OTHER_WAYS = ("recompute", "torch-ops")
AT_THE_ROOF = "seconds at the roof"


@dataclass(frozen=True)
class Contestant:
    """One way to do something: its seconds, with quartiles, and notes such as FLOP and bytes."""

    name: str
    median: float
    q1: float
    q3: float
    notes: dict[str, Any]

    @property
    def share(self) -> float | None:
        """Least time at the roofs divided by the time taken; None if the work is not counted."""
        share: float | None = self.notes.get("share of the roof")
        return share


@dataclass(frozen=True)
class Contest:
    """Ways to do one thing, timed in turns; the ones that are not ours are peers."""

    group: str
    ways: dict[str, Contestant]

    @cached_property
    def ours(self) -> Contestant:
        """Our default way."""
        return next(self.ways[name] for name in DEFAULTS if name in self.ways)

    @cached_property
    def peers(self) -> list[Contestant]:
        """The ways that are not ours."""
        return [w for n, w in self.ways.items() if n not in DEFAULTS + OTHER_WAYS]

    @property
    def best_peer(self) -> Contestant:
        """The fastest peer."""
        return min(self.peers, key=lambda way: way.median)

    @property
    def ratio(self) -> tuple[float, float, float]:
        """How many times faster than the best peer; see `against`."""
        return self.against(self.best_peer)

    def against(self, peer: Contestant) -> tuple[float, float, float]:
        """How many times faster than a peer: by medians, and at worst and best by quartiles."""
        ours = self.ours
        return peer.median / ours.median, peer.q1 / ours.q3, peer.q3 / ours.q1

    @property
    def verdict(self) -> str:
        """Faster or slower if the quartiles do not overlap."""
        _, low, high = self.ratio
        return "faster" if low > 1 else "slower" if high < 1 else "within the spread"

    @property
    def floor(self) -> float | None:
        """How many times faster than the best peer the least time at the roofs is."""
        least = self.ours.notes.get(AT_THE_ROOF)
        return None if least is None else self.best_peer.median / least

    @property
    def on_a_gpu(self) -> bool:
        """Whether it was measured on a GPU."""
        return " on a GPU" in self.group

    @property
    def is_timed(self) -> bool:
        """Whether it compares times; not if it compares bytes, scaling or malloc's settings."""
        return not (self.group.startswith(("memory", "scaling")) or self.gives_memory_back)

    @property
    def gives_memory_back(self) -> bool:
        """Whether malloc had its default settings, in which it returns memory to the system."""
        return ", memory given back" in self.group


def contests(content: dict[str, Any]) -> list[Contest]:
    """Return the contests of a file that have one of our default ways and a peer."""
    groups: defaultdict[str, dict[str, Contestant]] = defaultdict(dict)
    for one in content["benchmarks"]:
        way, stats = one["params"]["way"], one["stats"]
        groups[one["group"]][way] = Contestant(
            way, stats["median"], stats["q1"], stats["q3"], one["extra_info"]
        )
    return [
        Contest(group, ways)
        for group, ways in groups.items()
        if set(ways) & set(DEFAULTS) and set(ways) - set(DEFAULTS + OTHER_WAYS)
    ]
