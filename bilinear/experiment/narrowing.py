"""How trained models are narrowed: each width starts from the next wider one's weights less a unit.

A seed's models form a chain from the largest width down. Which units a model loses is decided on
the training pairs alone; when training stops is decided as in any other sweep.
"""

from dataclasses import dataclass
from typing import Any

from bilinear.errors import ConfigError, shown
from bilinear.experiment.schedule import Schedule

DROPS = ("loss", "norm", "random")
_LAST_LR = Schedule(0.02, 0.00002, "linear")
_LAST_WEIGHT_DECAY = Schedule(0.03, 1e-6, "cosine")


@dataclass(frozen=True)
class Narrowing:
    """What is tried at a width of a chain until a model reaches the goal.

    `drop` orders the units of a model: by the training loss without the unit ("loss"), by
    ‖w_l‖ ‖w_r‖ ‖w_p‖ of the unit ("norm"), least first, or at random ("random"). Up to the width
    `tries_up_to`, up to `tries` of the wider model's are left out in turn, until one way reaches
    the goal; above it the first alone. If none does, the first way's model is trained up to
    `redraws` times more, its own first unit drawn anew each time. Up to the width `last_up_to` no
    unit is drawn anew: every way goes on for `last_steps` by the schedules `last_lr` and
    `last_weight_decay`, in turn. Moments are fresh at every start.
    """

    drop: str = "loss"
    tries: int = 8
    tries_up_to: int = 8
    redraws: int = 8
    last_up_to: int = 2
    last_steps: int = 40_000
    last_lr: Schedule = _LAST_LR
    last_weight_decay: Schedule = _LAST_WEIGHT_DECAY

    def __post_init__(self) -> None:
        """Refuse what cannot be done, naming the setting."""
        if not isinstance(self.drop, str) or self.drop not in DROPS:
            raise ConfigError(f"drop: expected {', '.join(DROPS)}, got {shown(self.drop)}")
        least = {"tries": 1, "tries_up_to": 0, "redraws": 0, "last_up_to": 0, "last_steps": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise ConfigError(f"{name}: expected an integer ≥ {low}, got {shown(value)}")
        for name in ("last_lr", "last_weight_decay"):
            if not isinstance(getattr(self, name), Schedule):
                raise ConfigError(f"{name}: expected a Schedule, got {shown(getattr(self, name))}")

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> "Narrowing":
        """Build from what `dataclasses.asdict` made; TypeError for anything else."""
        schedules = {name: Schedule(**fields[name]) for name in ("last_lr", "last_weight_decay")}
        return cls(**(fields | schedules))

    def tries_at(self, d_hidden: int, wider: int) -> int:
        """How many ways to leave out wider − d_hidden units are tried at most."""
        return (
            min(self.tries, wider) if d_hidden <= self.tries_up_to and wider - d_hidden == 1 else 1
        )

    def has_last(self, d_hidden: int) -> bool:
        """Whether a width ends with the long schedules; one unit can't be perfect however long."""
        return 1 < d_hidden <= self.last_up_to
