"""Schedules of learning rate and weight decay, and a phase of training that follows them."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bilinear.errors import ConfigError, shown

# Between these, float32 can hold a value, its square and its inverse.
LEAST, MOST = 1e-18, 1e18
SHAPES = ("constant", "linear", "cosine", "exponential")


def is_number(value: object) -> bool:
    """Whether `value` is a finite int or float, and no bool."""
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Schedule:
    """From `start` at the first step to `end` at the last, along one of `SHAPES`."""

    start: float
    end: float
    shape: str = "constant"

    def __post_init__(self) -> None:
        """Raise ConfigError for numbers or a shape that cannot be computed."""
        if self.shape not in SHAPES:
            names = ", ".join(SHAPES)
            raise ConfigError(f"schedule: expected one of {names}, got {shown(self.shape)}")
        for name, value in (("start", self.start), ("end", self.end)):
            if not (is_number(value) and (value == 0 or LEAST <= value <= MOST)):
                raise ConfigError(
                    f"schedule {name}: expected 0 or a number from {LEAST:g} to {MOST:g}, "
                    f"got {shown(value)}"
                )
        if self.shape == "constant" and self.start != self.end:
            raise ConfigError(
                f"schedule: a constant one cannot go from {self.start} to {self.end}; "
                "expected linear, cosine or exponential"
            )
        if self.shape == "exponential" and 0 in (self.start, self.end):
            raise ConfigError("schedule: an exponential one cannot start or end at 0")

    def values(self, steps: int) -> Tensor:
        """The value at each step, float64 (steps,)."""
        t = torch.linspace(0, 1, max(steps, 2), dtype=torch.float64)[:steps]
        if self.shape == "exponential":
            return self.start * (self.end / self.start) ** t
        if self.shape == "cosine":
            t = (1 - torch.cos(math.pi * t)) / 2
        return self.start + (self.end - self.start) * t


@dataclass(frozen=True)
class Phase:
    """Steps over which each schedule runs once, from AdamW moments of zero."""

    steps: int
    lr: Schedule
    weight_decay: Schedule

    def __post_init__(self) -> None:
        """Raise ConfigError for what cannot be run, naming the setting."""
        if type(self.steps) is not int or self.steps < 1:
            raise ConfigError(f"steps: expected an integer ≥ 1, got {shown(self.steps)}")
        for name in ("lr", "weight_decay"):
            if not isinstance(getattr(self, name), Schedule):
                raise ConfigError(f"{name}: expected a Schedule, got {shown(getattr(self, name))}")

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> "Phase":
        """Build from what `dataclasses.asdict` made; TypeError for anything else."""
        return cls(**(fields | {name: Schedule(**fields[name]) for name in ("lr", "weight_decay")}))
