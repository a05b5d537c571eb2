"""When a model has reached its goal, and when it counts as perfect."""

import pytest

from bilinear.experiment.config import SweepConfig
from bilinear.experiment.record import Job, Record


def record_of(correct: list[int], hold: int = 3, goal: str = "full") -> Record:
    config = SweepConfig(p=4, steps=1000, hold=hold, goal=goal, remainders=())
    record = Record(config)
    for i, wrong in enumerate(correct):
        record.add(10 * (i + 1), 0.1, 0.2, 12, 4 - wrong, 1.0 if wrong == 0 else -1.0)
    return record


@pytest.mark.parametrize(
    ("wrong", "finished", "perfect", "first", "held"),
    [
        ([1, 0, 0], False, False, 20, True),
        ([1, 0, 0, 0], True, True, 20, True),
        ([0, 1, 0, 0], False, False, 10, False),
        ([0, 1, 0, 0, 0], True, True, 10, False),
        ([1, 2], False, False, None, False),
    ],
)
def test_a_lucky_step_is_no_success(
    wrong: list[int], finished: bool, perfect: bool, first: int | None, held: bool
) -> None:
    record = record_of(wrong)
    row = record.row(Job(3, 0))
    assert record.at_goal == finished
    assert (row["perfect"], row["first_perfect_step"], row["held"]) == (perfect, first, held)
    assert row["full_acc"] == (16 - wrong[-1]) / 16
    assert row["best_full_acc"] == (16 - min(wrong)) / 16


def test_validation_goal_ignores_training_pairs() -> None:
    config = SweepConfig(p=4, steps=1000, hold=1, goal="val", remainders=())
    record = Record(config)
    record.add(10, 0.1, 0.2, 3, 4, -1.0)
    assert record.at_goal
    assert not record.row(Job(3, 0))["perfect"]
