"""How trained models are narrowed: each width starts from the next wider one's weights less a unit.

A seed's models form a chain from the largest width down. Which units a model loses is decided by
its weights or on the training pairs alone; when training stops is decided as in any other sweep.
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
    """What is done at a width of a chain.

    The widest model is trained to the end of the recipe, in at most `widest_steps` steps. `drop`
    orders the units of a model, the first to go first:

    - "circuit": units without amplitude; then those of the frequency with the least amplitude in
      all, frequencies that share a factor with p before all others;
    - "loss": by the training loss without the unit; "norm": by ‖w_l‖ ‖w_r‖ ‖w_p‖ of the unit;
    - "random".

    Circuits and norms are read from the weights, no pair is looked at. A width goes through the
    following until one way reaches the goal:

    1. Where what goes has no amplitude, the rest is trained on as gently as the recipe ends.
    2. Up to `tries` ways by the whole recipe: the first units go; besides, the rest of the weakest
       circuit is silenced (weights of zero); of the two weakest; and so on. For the other orders
       one more unit is silenced each time.
    3. The first way's model is trained up to `redraws` times more. "circuit" keeps its strongest
       circuit alone, and if fewer than three units serve it, has one more drawn at its frequency;
       the other orders draw the unit anew that would go next.

    Up to the width `last_up_to` each way leaves out another unit, none is silenced or drawn anew,
    and the `last_tries` ways of the least training loss go on by the phase `last`, in turn.
    Moments are fresh at every start. If no way reaches the goal, the first one's model is kept.
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
        """How many ways to narrow a model of that width are tried at most."""
        return min(self.tries, wider)

    def redraws_at(self, d_hidden: int) -> int:
        """How often the first way's model is trained again at most."""
        return self.redraws if d_hidden > self.last_up_to else 0

    def last_at(self, d_hidden: int) -> bool:
        """Whether a width ends with `last`; one unit can't be perfect however long it trains."""
        return 1 < d_hidden <= self.last_up_to

    def most_steps(self, d_hidden: int, wider: int | None, recipe: Phase, settling: int) -> int:
        """Steps that a width takes at most, those of starts that are not kept too."""
        if wider is None:
            return self.widest(recipe).steps
        tries = self.tries_at(wider)
        last = self.last_at(d_hidden) * min(self.last_tries, tries) * self.last.steps
        return settling + (tries + self.redraws_at(d_hidden)) * recipe.steps + last

    def widest(self, recipe: Phase) -> Phase:
        """What the widest model is trained by."""
        return replace(recipe, steps=min(recipe.steps, self.widest_steps))
