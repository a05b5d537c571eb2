"""How trained models are narrowed: each width starts from the next wider one's weights less a unit.

A seed's models form a chain from the largest width down. Which units a model loses depends on its
weights or on the training pairs alone, never on validation pairs; training stops as in any sweep.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

from bilinear.errors import ConfigError, OtherVersionError, shown
from bilinear.experiment.schedule import Phase, Schedule

DROPS = ("circuit", "loss", "norm", "random")
# docs/decisions.md has the measurements behind it.
_LAST = Phase(6_000, Schedule(0.1, 0.0001, "linear"), Schedule(1e-4, 1e-4))


@dataclass(frozen=True)
class Narrowing:
    """How each width of a chain is trained.

    The widest model is trained to the end of the recipe, in at most `widest_steps` steps. `drop`
    orders the units of a model, the first to go first:

    - "circuit": units without amplitude; then those of the frequency with the least amplitude in
      all, frequencies that share a factor with p before all others;
    - "loss": by the training loss without the unit; "norm": by ‖w_l‖ ‖w_r‖ ‖w_p‖ of the unit;
    - "random".

    Circuits and norms are computed from the weights, without any pair. A width takes these steps
    until a model reaches the goal:

    1. If the units that go have no amplitude, the model without them is trained on at the recipe's
       last learning rate and decay.
    2. Up to `tries` ways are trained by the whole recipe. The first leaves out the first units; the
       second silences (sets to zero) the rest of the weakest circuit as well, the third the two
       weakest circuits, and so on. Orders other than "circuit" silence one more unit each time.
    3. The first way's model is trained up to `redraws` times more. With "circuit" it keeps its
       strongest circuit alone and, if fewer than three units serve that, draws one more at its
       frequency; other orders draw anew the unit that would go next.

    Up to the width `last_up_to` each way leaves out another unit, none is silenced or drawn anew,
    and the `last_tries` ways of the least training loss are trained on by the phase `last`.
    Moments are zero at every start. If no model reaches the goal, the first way's is kept.
    """

    drop: str = "circuit"
    widest_steps: int = 2_000
    tries: int = 4
    redraws: int = 4
    last_up_to: int = 2
    last_tries: int = 2
    last: Phase = _LAST

    def __post_init__(self) -> None:
        """Refuse what cannot be done, naming the setting."""
        if not isinstance(self.drop, str) or self.drop not in DROPS:
            raise ConfigError(f"drop: expected {', '.join(DROPS)}, got {shown(self.drop)}")
        least = {"widest_steps": 1, "tries": 1, "redraws": 0, "last_up_to": 0, "last_tries": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise ConfigError(f"{name}: expected an integer ≥ {low}, got {shown(value)}")
        if not isinstance(self.last, Phase):
            raise ConfigError(f"last: expected a Phase, got {shown(self.last)}")

    @classmethod
    def from_fields(cls, given: dict[str, Any]) -> "Narrowing":
        """Build from what `dataclasses.asdict` made.

        Raises OtherVersionError if another version did, TypeError for anything else.
        """
        different = sorted({field.name for field in fields(cls)} ^ given.keys())
        if different:
            raise OtherVersionError(
                f"its models were narrowed by another version of bilinear (this one differs in "
                f"{', '.join(different)}): read it with that version, or train them again into a "
                "new folder"
            )
        return cls(**(given | {"last": Phase.from_fields(given["last"])}))

    def tries_at(self, wider: int) -> int:
        """Most ways that are tried to narrow a model of the width `wider`."""
        return min(self.tries, wider)

    def redraws_at(self, d_hidden: int) -> int:
        """Most times that the first way's model is trained again."""
        return self.redraws if d_hidden > self.last_up_to else 0

    def last_at(self, d_hidden: int) -> bool:
        """Whether a width ends with `last`; one unit can't be perfect however long it trains."""
        return 1 < d_hidden <= self.last_up_to

    def most_steps(self, d_hidden: int, wider: int | None, recipe: Phase, settling: int) -> int:
        """Most steps that a width takes, including starts that are not kept."""
        if wider is None:
            return self.widest(recipe).steps
        tries = self.tries_at(wider)
        last = self.last_at(d_hidden) * min(self.last_tries, tries) * self.last.steps
        return settling + (tries + self.redraws_at(d_hidden)) * recipe.steps + last

    def widest(self, recipe: Phase) -> Phase:
        """The phase that the widest model is trained by."""
        return replace(recipe, steps=min(recipe.steps, self.widest_steps))
