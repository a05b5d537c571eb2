"""Contests as pytest-benchmark's file has them: ways to do one thing, and who won."""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

# What users get by default; other ways of ours are shown, but decide nothing.
DEFAULTS = ("fused", "compiled", "span")
OTHER_WAYS = ("recompute", "torch-ops")
AT_THE_ROOF = "seconds at the roof"


@dataclass(frozen=True)
class Contestant:
    """One way to do something: seconds, with quartiles."""

    name: str
    median: float
    q1: float
    q3: float
    notes: dict[str, Any]

    @property
    def share(self) -> float | None:
        """How near the nearer roof it came, 1 being on it; None where the work is not counted."""
        share: float | None = self.notes.get("share of the roof")
        return share


@dataclass(frozen=True)
class Contest:
    """Ways to do one thing, timed in turns."""

    group: str
    ways: dict[str, Contestant]

    @cached_property
    def ours(self) -> Contestant:
        """The default way."""
        return next(self.ways[name] for name in DEFAULTS if name in self.ways)

    @cached_property
    def peers(self) -> list[Contestant]:
        """What else one would use."""
        return [w for n, w in self.ways.items() if n not in DEFAULTS + OTHER_WAYS]

    @property
    def best_peer(self) -> Contestant:
        """The fastest of what else one would use."""
        return min(self.peers, key=lambda way: way.median)

    @property
    def ratio(self) -> tuple[float, float, float]:
        """Times faster than the best peer: by medians, and between the quartiles' extremes."""
        return self.against(self.best_peer)

    def against(self, peer: Contestant) -> tuple[float, float, float]:
        """Times faster than one peer: by medians, and between the quartiles' extremes."""
        ours = self.ours
        return peer.median / ours.median, peer.q1 / ours.q3, peer.q3 / ours.q1

    @property
    def verdict(self) -> str:
        """Whether the quartiles overlap."""
        _, low, high = self.ratio
        return "faster" if low > 1 else "slower" if high < 1 else "within the spread"

    @property
    def floor(self) -> float | None:
        """Times faster than the best peer that running at the roofs would be."""
        least = self.ours.notes.get(AT_THE_ROOF)
        return None if least is None else self.best_peer.median / least

    @property
    def on_a_gpu(self) -> bool:
        """Whether it was one of GPU work."""
        return " on a GPU" in self.group

    @property
    def is_timed(self) -> bool:
        """Whether its time is the question: not where it asks for bytes, or for how time grows."""
        return not (self.group.startswith(("memory", "scaling")) or self.gives_memory_back)

    @property
    def gives_memory_back(self) -> bool:
        """Whether malloc was left to its defaults: a second look at a contest."""
        return ", memory given back" in self.group


def contests(content: dict[str, Any]) -> list[Contest]:
    """Contests of a pytest-benchmark file that have a default way and a peer."""
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
