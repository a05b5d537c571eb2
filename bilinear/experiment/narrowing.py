"""How trained models are narrowed: each width starts from the next wider one's weights less a unit.

A seed's models form a chain from the largest width down. Which units a model loses is decided on
the training pairs alone; when training stops is decided as in any other sweep.
"""

from dataclasses import dataclass
from typing import Any

from bilinear.errors import ConfigError, shown
from bilinear.experiment.schedule import Phase, Schedule

DROPS = ("loss", "norm", "random")
# docs/decisions.md has the measurements behind both.
_SETTLE = Phase(3000, Schedule(0.02, 0.0002, "linear"), Schedule(0.4, 0.4))
_LAST = Phase(40_000, Schedule(0.02, 0.00002, "linear"), Schedule(0.03, 1e-6, "cosine"))


@dataclass(frozen=True)
class Narrowing:
    """What is done at a width of a chain.

    `drop` orders the units of a model: by the training loss without the unit ("loss"), by
    ‖w_l‖ ‖w_r‖ ‖w_p‖ of the unit ("norm"), least first, or at random ("random"). Up to the width
    `tries_up_to`, up to `tries` of the wider model's are left out in turn, until one way reaches
    the goal; above it the first alone. If none does, the first way's model is trained up to
    `redraws` times more, its own first unit drawn anew each time. Up to the width `last_up_to` no
    unit is drawn anew: every way goes on by the phase `last`, in turn.

    Up to the width `settle_up_to` a model that reached the goal goes through the phase `settle`, to
    its end: units that few pairs need fade, and the model that narrower ones start from has fewer
    frequencies, each with more units. If it is no longer at the goal then, it stays as it was.
    Moments are fresh at every start.
    """

    drop: str = "loss"
    tries: int = 8
    tries_up_to: int = 8
    redraws: int = 8
    settle_up_to: int = 16
    settle: Phase = _SETTLE
    last_up_to: int = 2
    last: Phase = _LAST

    def __post_init__(self) -> None:
        """Refuse what cannot be done, naming the setting."""
        if not isinstance(self.drop, str) or self.drop not in DROPS:
            raise ConfigError(f"drop: expected {', '.join(DROPS)}, got {shown(self.drop)}")
        least = {"tries": 1, "tries_up_to": 0, "redraws": 0, "settle_up_to": 0, "last_up_to": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise ConfigError(f"{name}: expected an integer ≥ {low}, got {shown(value)}")
        for name in ("settle", "last"):
            if not isinstance(getattr(self, name), Phase):
                raise ConfigError(f"{name}: expected a Phase, got {shown(getattr(self, name))}")

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> "Narrowing":
        """Build from what `dataclasses.asdict` made; TypeError for anything else."""
        phases = {name: Phase.from_fields(fields[name]) for name in ("settle", "last")}
        return cls(**(fields | phases))

    def tries_at(self, d_hidden: int, wider: int) -> int:
        """How many ways to leave out wider − d_hidden units are tried at most."""
        return (
            min(self.tries, wider) if d_hidden <= self.tries_up_to and wider - d_hidden == 1 else 1
        )

    def redraws_at(self, d_hidden: int) -> int:
        """How often a unit is drawn anew at most."""
        return self.redraws if d_hidden > self.last_up_to else 0

    def last_at(self, d_hidden: int) -> bool:
        """Whether a width ends with `last`; one unit can't be perfect however long it trains."""
        return 1 < d_hidden <= self.last_up_to

    def settles_at(self, d_hidden: int) -> bool:
        """Whether a model at the goal goes through `settle`; for `last` ones it would undo that."""
        return self.last_up_to < d_hidden <= self.settle_up_to

    def most_steps(self, d_hidden: int, wider: int, steps: int) -> int:
        """Steps that a width takes at most, those of starts that are not kept too."""
        each = steps + self.last_at(d_hidden) * self.last.steps
        again = self.redraws_at(d_hidden) * steps + self.settles_at(d_hidden) * self.settle.steps
        return self.tries_at(d_hidden, wider) * each + again
