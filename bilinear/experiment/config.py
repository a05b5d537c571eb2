"""What a sweep trains: one frozen, checked object that is stored beside its results."""

import dataclasses
import json
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bilinear.errors import ConfigError, OtherVersionError, shown
from bilinear.experiment.narrowing import Narrowing
from bilinear.experiment.schedule import LEAST, MOST, Phase, Schedule, is_number
from bilinear.experiment.task import n_train_pairs

NOTEBOOK_REMAINDERS = (0, 5, 22, 42, 63)
GOALS = ("full", "val")
# Larger sizes were never tried; seeds must fit the table's 64-bit columns.
MOST_UNITS = 2**14
MOST_SEED = 2**63 - 1
MOST_STEPS = 10**8
PRECISIONS = ("highest", "high", "tf32")

# The default recipe; docs/decisions.md has the measurements behind it.
_LR = Schedule(0.05, 0.0005, "linear")
_WEIGHT_DECAY = Schedule(0.4, 0.004, "cosine")


@dataclass(frozen=True)
class SweepConfig:
    """Every (width, seed) pair of a study of (a + b) mod p, and how each is trained.

    `batch_size` is the pairs of a step, reshuffled every epoch, the last partial batch dropped; 0
    is full batch. A model is evaluated every `eval_every` steps; it stops early once its accuracy
    on the `goal` pairs ("full": all p², "val": those not trained on) was 100 % at `hold`
    evaluations in a row. `init_scale` multiplies `nn.Linear`'s bounds. `remainders` are the outputs
    whose interaction matrices are stored. `precision` is that of a GPU's matrix products: as
    float32 ("highest"), 16 bits ("high") or tf32's 11. With `narrow` each width but the largest
    starts from the weights of the next wider one; without, from initial weights of its own.
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
    narrow: Narrowing | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be trained, naming the setting."""
        check_modulus(self.p)
        _check_distinct("widths", self.widths, 1, MOST_UNITS)
        _check_distinct("seeds", self.seeds, 0, MOST_SEED)
        _check_distinct("remainders", self.remainders, 0, self.p - 1, may_be_empty=True)
        for name in ("steps", "eval_every", "hold"):
            _check_integer(name, getattr(self, name), 1, MOST_STEPS)
        _check_fraction(self.train_frac, self.p)
        n_train = n_train_pairs(self.p, self.train_frac)
        if type(self.batch_size) is not int or not 0 <= self.batch_size <= n_train:
            raise ConfigError(
                f"batch size: expected full, or 1 to {n_train} (the training pairs), "
                f"got {shown(self.batch_size)}"
            )
        Phase(self.steps, self.lr, self.weight_decay)  # raises if one of them is no Schedule
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise ConfigError(f"betas: expected two numbers, got {shown(self.betas)}")
        for name, beta in zip(("beta1", "beta2"), self.betas, strict=True):
            if not (is_number(beta) and 0 <= beta < 1):
                raise ConfigError(f"{name}: expected 0 ≤ {name} < 1, got {shown(beta)}")
        for name in ("eps", "init_scale"):
            value = getattr(self, name)
            if not (is_number(value) and LEAST <= value <= MOST):
                raise ConfigError(
                    f"{name}: expected a number from {LEAST:g} to {MOST:g}, got {shown(value)}"
                )
        if self.goal not in GOALS:
            raise ConfigError(f"goal: expected {' or '.join(GOALS)}, got {shown(self.goal)}")
        if self.precision not in PRECISIONS:
            raise ConfigError(
                f"precision: expected {', '.join(PRECISIONS)}, got {shown(self.precision)}"
            )

    @property
    def n_train(self) -> int:
        """Pairs trained on."""
        return n_train_pairs(self.p, self.train_frac)

    @property
    def steps_per_epoch(self) -> int:
        """Steps that see every training pair once, except those of the dropped partial batch."""
        return self.n_train // self.batch_size if self.batch_size else 1

    @property
    def jobs(self) -> list[tuple[int, int]]:
        """Every (d_hidden, seed) of the study."""
        return [(d, seed) for d in self.widths for seed in self.seeds]

    def parent(self, d_hidden: int) -> int | None:
        """The width whose weights a model of width d_hidden starts from; None for initial ones."""
        if self.narrow is None:
            return None
        rising = self._rising
        place = bisect_right(rising, d_hidden)
        return rising[place] if place < len(rising) else None

    @cached_property
    def _rising(self) -> list[int]:
        return sorted(self.widths)

    @property
    def recipe(self) -> Phase:
        """The phase that every model is trained by, except the widest of a chain."""
        return Phase(self.steps, self.lr, self.weight_decay)

    @property
    def settling(self) -> Phase:
        """`hold` evaluations' steps at the recipe's last learning rate and decay."""
        lr, decay = self.lr.end, self.weight_decay.end
        return Phase(self.hold * self.eval_every, Schedule(lr, lr), Schedule(decay, decay))

    def most_steps(self, d_hidden: int) -> int:
        """Most steps that a width of one seed takes, including starts that are not kept."""
        if self.narrow is None:
            return self.steps
        wider = self.parent(d_hidden)
        return self.narrow.most_steps(d_hidden, wider, self.recipe, self.settling.steps)

    def to_json(self) -> str:
        """Write as JSON, with the same text for equal configs."""
        fields = dataclasses.asdict(self)
        if self.narrow is None:
            del fields["narrow"]
        return json.dumps(fields, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "SweepConfig":
        """Read what `to_json` wrote; raises ConfigError for anything else."""
        try:
            fields: dict[str, Any] = json.loads(text)
            for name in ("widths", "seeds", "betas", "remainders"):
                fields[name] = tuple(fields[name])
            for name in ("lr", "weight_decay"):
                fields[name] = Schedule(**fields[name])
            if fields.get("narrow") is not None:
                fields["narrow"] = Narrowing.from_fields(fields["narrow"])
            return cls(**fields)
        except OtherVersionError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ConfigError(f"not a sweep's config: {error}") from error

    def differences(self, other: "SweepConfig") -> list[str]:
        """Name the settings in which two configs differ, with both values."""
        names = [f.name for f in dataclasses.fields(self)]
        values = [(name, getattr(self, name), getattr(other, name)) for name in names]
        return [
            f"{name}: {_words(here)} here, {_words(there)} there"
            for name, here, there in values
            if here != there
        ]


def _words(value: object) -> str:
    """Write a setting as one types it: 64,32 instead of a tuple."""
    if isinstance(value, tuple):
        return shown(",".join(map(str, value))).strip("'")
    if isinstance(value, Schedule):
        return f"{value.start:g} → {value.end:g} ({value.shape})"
    return shown(value)


def check_modulus(p: int) -> None:
    """Raise ConfigError for a p that no config accepts."""
    _check_integer("p", p, 2, MOST_UNITS)


def _check_integer(name: str, value: int, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise ConfigError(
            f"{name}: expected an integer from {least:,} to {most:,}, got {shown(value)}"
        )


def _check_distinct(
    name: str, values: tuple[int, ...], least: int, most: int, *, may_be_empty: bool = False
) -> None:
    if not isinstance(values, tuple):
        raise ConfigError(f"{name}: expected a tuple of integers, got {shown(values)}")
    if not values and not may_be_empty:
        raise ConfigError(f"{name}: expected at least one, got none")
    for value in values:
        _check_integer(name, value, least, most)
    if len(set(values)) != len(values):
        twice = next(value for value, n in Counter(values).items() if n > 1)
        raise ConfigError(f"{name}: expected each once, got {twice} again")


def _check_fraction(train_frac: float, p: int) -> None:
    if not (is_number(train_frac) and 0 < train_frac < 1):
        raise ConfigError(f"train fraction: expected 0 < fraction < 1, got {shown(train_frac)}")
    n_train = n_train_pairs(p, train_frac)
    if n_train == 0:
        raise ConfigError(
            f"train fraction: {train_frac} of {p * p} pairs is none; expected at least one"
        )
