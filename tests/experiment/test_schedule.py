"""What AdamW's learning rate and decay are at each step."""

import pytest

from bilinear.errors import ConfigError
from bilinear.experiment.schedule import SHAPES, Schedule


@pytest.mark.parametrize("shape", SHAPES)
def test_schedule_goes_from_start_to_end(shape: str) -> None:
    schedule = Schedule(0.5, 0.5 if shape == "constant" else 0.1, shape)
    values = schedule.values(101)
    assert values[0].item() == pytest.approx(schedule.start)
    assert values[-1].item() == pytest.approx(schedule.end)
    assert (values.diff() <= 0).all()
    middle = {"constant": 0.5, "linear": 0.3, "cosine": 0.3, "exponential": 0.05**0.5}[shape]
    assert values[50].item() == pytest.approx(middle)
    assert len(schedule.values(1)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.1, 0.1, "square"), "expected one of constant, linear"),
        ((-1.0, -1.0), "start: expected 0 or a number"),
        ((0.1, 0.2), "constant one cannot go"),
        ((0.1, 0.0, "exponential"), "cannot start or end at 0"),
    ],
)
def test_bad_schedules(arguments: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Schedule(*arguments)
