from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bilinear.errors import ConfigError
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.schedule import Schedule

BAD: list[tuple[dict[str, Any], str]] = [
    ({"p": 1}, "p: expected an integer from 2 to 16,384, got 1"),
    ({"widths": (4, 0)}, "widths: expected an integer from 1 to 16,384, got 0"),
    ({"widths": ()}, "widths: expected at least one"),
    ({"widths": (4, 5, 4)}, "widths: expected each once, got 4"),
    ({"seeds": ()}, "seeds: expected at least one"),
    ({"train_frac": 0.0}, "train fraction: expected 0 < fraction < 1, got 0.0"),
    ({"train_frac": 1.0}, "train fraction"),
    ({"train_frac": float("nan")}, "train fraction"),
    ({"p": 2, "remainders": (), "train_frac": 0.1}, "train fraction: 0.1 of 4 pairs is none"),
    ({"steps": 0}, "steps: expected an integer from 1 to"),
    ({"batch_size": 3073}, "batch size: expected full, or 1 to 3072"),
    ({"betas": (0.9, 1.0)}, "beta2: expected 0 ≤ beta2 < 1, got 1.0"),
    ({"eps": 0.0}, "eps: expected a number from"),
    ({"init_scale": float("inf")}, "init_scale"),
    ({"goal": "train"}, "goal: expected full or val, got 'train'"),
    ({"remainders": (64,)}, "remainders: expected an integer from 0 to 63, got 64"),
    ({"precision": "bf16"}, "precision"),
    ({"p": True}, "p: expected an integer"),
    ({"p": 7.0}, "p: expected an integer .* got 7.0"),
    ({"p": 16_385}, "p: expected an integer from 2 to 16,384"),
    ({"p": None}, "p: expected an integer"),
    ({"widths": [4]}, "widths: expected a tuple of integers, got \\[4\\]"),
    ({"widths": (10**7,)}, "widths: expected an integer from 1 to 16,384, got 10000000"),
    ({"seeds": (2**70,)}, "seeds: expected an integer from 0 to"),
    ({"seeds": 3}, "seeds: expected a tuple"),
    ({"steps": 10**12}, "steps: expected an integer from 1 to"),
    ({"lr": 0.1}, "lr: expected a Schedule, got 0.1"),
    ({"weight_decay": (0.1, 0.1)}, "weight_decay: expected a Schedule"),
    ({"betas": 0.9}, "betas: expected two numbers"),
    ({"betas": ("a", 0.9)}, "beta1: expected"),
    ({"eps": "1"}, "eps: expected a number"),
    ({"init_scale": 1e30}, "init_scale: expected a number from"),
    ({"init_scale": 1e-320}, "init_scale: expected a number from"),
    ({"batch_size": 1.5}, "batch size: expected full, or 1 to 3072 .* got 1.5"),
    ({"batch_size": False}, "batch size"),
    ({"train_frac": "0.5"}, "train fraction: expected 0 < fraction < 1, got '0.5'"),
    ({"goal": ["full"]}, "goal"),
    ({"goal": "x" * 10**6}, "goal"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        SweepConfig(**settings)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("value", [1e30, 1e-320, -1.0, float("nan"), "0.1", None, True])
def test_a_schedule_is_of_numbers_that_can_be_trained_with(value: Any) -> None:
    with pytest.raises(ConfigError, match="schedule start: expected 0 or a number"):
        Schedule(value, value)


@given(
    st.integers(2, 200),
    st.lists(st.integers(1, 99), min_size=1, unique=True),
    st.floats(0.3, 0.9),
    st.floats(1e-6, 1),
)
def test_json_round_trip(p: int, widths: list[int], train_frac: float, lr: float) -> None:
    config = SweepConfig(
        p=p, widths=tuple(widths), train_frac=train_frac, lr=Schedule(lr, lr), remainders=(0,)
    )
    assert SweepConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "[" * 100_000, '{"p": 64, "colour": 3}', '{"p": 1}']
)
def test_json_that_is_no_config(text: str) -> None:
    with pytest.raises(ConfigError):
        SweepConfig.from_json(text)


def test_differences_name_both_values() -> None:
    other = SweepConfig(p=59, remainders=(0,))
    assert SweepConfig(remainders=(0,)).differences(other) == ["p: 64 here, 59 there"]
