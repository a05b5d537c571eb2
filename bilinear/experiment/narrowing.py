"""How trained models are narrowed: each width starts from the next wider one's weights less a unit.

A seed's models form a chain from the largest width down. Which units a model loses is decided by
its weights or on the training pairs alone; when training stops is decided as in any other sweep.
"""

from dataclasses import dataclass
from typing import Any

from bilinear.errors import ConfigError, shown
from bilinear.experiment.schedule import Phase, Schedule

DROPS = ("circuit", "loss", "norm", "random")
# docs/decisions.md has the measurements behind it.
_LAST = Phase(40_000, Schedule(0.02, 0.00002, "linear"), Schedule(0.03, 1e-6, "cosine"))


@dataclass(frozen=True)
class Narrowing:
    """What is done at a width of a chain, after the widest model went through its whole recipe.

    `drop` orders the units of a model, the first to go first:

    - "circuit": units without amplitude; then those of the frequency with the least amplitude in
      all, frequencies that share a factor with p before all others;
    - "loss": by the training loss without the unit; "norm": by ‖w_l‖ ‖w_r‖ ‖w_p‖ of the unit;
    - "random".

    Circuits and norms are read from the weights, no pair is looked at. Up to the width
    `tries_up_to`, up to `tries` of the wider model's units are left out in turn, until one way
    reaches the goal; above it the first alone. If none does, the first way's model is trained up to
    `redraws` times more, its own first unit drawn anew each time. Up to the width `last_up_to` no
    unit is drawn anew: every way goes on by the phase `last`, in turn. Moments are fresh at every
    start.
    """

    drop: str = "circuit"
    tries: int = 8
    tries_up_to: int = 8
    redraws: int = 8
    last_up_to: int = 2
    last: Phase = _LAST

    def __post_init__(self) -> None:
        """Refuse what cannot be done, naming the setting."""
        if not isinstance(self.drop, str) or self.drop not in DROPS:
            raise ConfigError(f"drop: expected {', '.join(DROPS)}, got {shown(self.drop)}")
        least = {"tries": 1, "tries_up_to": 0, "redraws": 0, "last_up_to": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise ConfigError(f"{name}: expected an integer ≥ {low}, got {shown(value)}")
        if not isinstance(self.last, Phase):
            raise ConfigError(f"last: expected a Phase, got {shown(self.last)}")

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> "Narrowing":
        """Build from what `dataclasses.asdict` made; TypeError for anything else."""
        return cls(**(fields | {"last": Phase.from_fields(fields["last"])}))

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

    def most_steps(self, d_hidden: int, wider: int, steps: int) -> int:
        """Steps that a width takes at most, those of starts that are not kept too."""
        each = steps + self.last_at(d_hidden) * self.last.steps
        return self.tries_at(d_hidden, wider) * each + self.redraws_at(d_hidden) * steps
