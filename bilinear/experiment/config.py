"""What a sweep trains: one frozen, checked object that is stored beside its results."""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

from bilinear.errors import ConfigError
from bilinear.experiment.schedule import Schedule
from bilinear.experiment.task import n_train_pairs

NOTEBOOK_REMAINDERS = (0, 5, 22, 42, 63)
GOALS = ("full", "val")
PRECISIONS = ("highest", "high", "tf32")

# The default recipe; docs/decisions.md has the measurements behind it.
_LR = Schedule(0.05, 0.0005, "linear")
_WEIGHT_DECAY = Schedule(0.4, 0.004, "cosine")


@dataclass(frozen=True)
class SweepConfig:
    """Every (width, seed) pair of a study of (a + b) mod p, and how each is trained.

    `batch_size` 0 is full batch, otherwise pairs a step, reshuffled every epoch, the last partial
    batch dropped. A model is evaluated every `eval_every` steps; it stops early once its accuracy
    on the `goal` pairs ("full": all p², "val": those not trained on) was 100 % at `hold`
    evaluations in a row. `init_scale` multiplies `nn.Linear`'s bounds. `remainders` are the outputs
    whose interaction matrices are stored. `precision` is that of a GPU's matrix products: as
    float32 ("highest"), 16 bits ("high") or tf32's 11.
    """

    p: int = 64
    widths: tuple[int, ...] = tuple(range(64, 0, -1))
    seeds: tuple[int, ...] = (0,)
    train_frac: float = 0.75
    steps: int = 6000
    lr: Schedule = _LR
    weight_decay: Schedule = _WEIGHT_DECAY
    betas: tuple[float, float] = (0.95, 0.99)
    eps: float = 1e-8
    batch_size: int = 0
    init_scale: float = 1.0
    eval_every: int = 10
    goal: str = "full"
    hold: int = 10
    remainders: tuple[int, ...] = NOTEBOOK_REMAINDERS
    precision: str = "highest"

    def __post_init__(self) -> None:
        """Refuse what cannot be trained, naming the setting."""
        _check_integer("p", self.p, 2)
        _check_distinct("widths", self.widths, 1)
        _check_distinct("seeds", self.seeds, 0)
        _check_distinct("remainders", self.remainders, 0, self.p - 1, may_be_empty=True)
        for name in ("steps", "eval_every", "hold"):
            _check_integer(name, getattr(self, name), 1)
        _check_fraction(self.train_frac, self.p)
        n_train = n_train_pairs(self.p, self.train_frac)
        if not (self.batch_size == 0 or 1 <= self.batch_size <= n_train):
            raise ConfigError(
                f"batch size: expected full, or 1 to {n_train} (the training pairs), "
                f"got {self.batch_size}"
            )
        for name, beta in zip(("beta1", "beta2"), self.betas, strict=True):
            if not 0 <= beta < 1:
                raise ConfigError(f"{name}: expected 0 ≤ {name} < 1, got {beta}")
        for name in ("eps", "init_scale"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}: expected a number > 0, got {value}")
        if self.goal not in GOALS:
            raise ConfigError(f"goal: expected {' or '.join(GOALS)}, got {self.goal!r}")
        if self.precision not in PRECISIONS:
            raise ConfigError(
                f"precision: expected {', '.join(PRECISIONS)}, got {self.precision!r}"
            )

    @property
    def n_train(self) -> int:
        """Pairs trained on."""
        return n_train_pairs(self.p, self.train_frac)

    @property
    def steps_per_epoch(self) -> int:
        """Steps that see every training pair once, but for the dropped partial batch."""
        return self.n_train // self.batch_size if self.batch_size else 1

    @property
    def jobs(self) -> list[tuple[int, int]]:
        """Every (d_hidden, seed) of the study."""
        return [(d, seed) for d in self.widths for seed in self.seeds]

    def to_json(self) -> str:
        """Write as JSON, with the same text for equal configs."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "SweepConfig":
        """Read what `to_json` wrote; raises ConfigError for anything else."""
        try:
            fields: dict[str, Any] = json.loads(text)
            for name in ("widths", "seeds", "betas", "remainders"):
                fields[name] = tuple(fields[name])
            for name in ("lr", "weight_decay"):
                fields[name] = Schedule(**fields[name])
            return cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"not a sweep's config: {error}") from error

    def differences(self, other: "SweepConfig") -> list[str]:
        """Name the settings in which two configs differ, with both values."""
        return [
            f"{f.name}: {getattr(self, f.name)} here, {getattr(other, f.name)} there"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != getattr(other, f.name)
        ]


def _check_integer(name: str, value: int, least: int, most: int | None = None) -> None:
    good = isinstance(value, int) and value >= least and (most is None or value <= most)
    if not good:
        wanted = f"an integer ≥ {least}" if most is None else f"an integer from {least} to {most}"
        raise ConfigError(f"{name}: expected {wanted}, got {value}")


def _check_distinct(
    name: str,
    values: tuple[int, ...],
    least: int,
    most: int | None = None,
    *,
    may_be_empty: bool = False,
) -> None:
    if not values and not may_be_empty:
        raise ConfigError(f"{name}: expected at least one, got none")
    for value in values:
        _check_integer(name, value, least, most)
    duplicates = sorted({v for v in values if values.count(v) > 1}) if len(values) < 10_000 else []
    if len(set(values)) != len(values):
        raise ConfigError(f"{name}: expected each once, got {duplicates or 'duplicates'} again")


def _check_fraction(train_frac: float, p: int) -> None:
    if not 0 < train_frac < 1:
        raise ConfigError(f"train fraction: expected 0 < fraction < 1, got {train_frac}")
    n_train = n_train_pairs(p, train_frac)
    if n_train == 0:
        raise ConfigError(
            f"train fraction: {train_frac} of {p * p} pairs is none; expected at least one"
        )
