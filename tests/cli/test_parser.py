"""A bad option is an error of one line that suggests the right one."""

import pytest

from bilinear.cli.options import COMMANDS, build_parser
from bilinear.cli.parser import naming_options
from bilinear.errors import ConfigError
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.presets import PRESETS


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("--fusd", "--fused"), ("--width=3", "--widths"), ("--weight_decay", "--weight-decay")],
)
def test_what_was_probably_meant(typed: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"unrecognized .*; did you mean {meant}"):
        build_parser().parse_args([typed])
    with pytest.raises(ConfigError, match=r"arguments: --xyzzy$"):
        build_parser().parse_args(["--xyzzy"])


@pytest.mark.parametrize("option", ["--lr", "--widths", "--out", "--drop", "--seeds"])
def test_two_dashes_are_no_value(option: str) -> None:
    with pytest.raises(ConfigError, match=f"argument {option}: expected a value, got '--'"):
        build_parser().parse_args([f"{option}=--"])


def test_errors_name_the_option() -> None:
    assert naming_options("batch size: expected full").startswith("--batch-size: expected")
    assert naming_options("p: expected 2") == "--p: expected 2"
    for other in ("p is odd", "nothing: here", "runs/p: damaged"):
        assert naming_options(other) == other


def test_help_has_the_commands_and_the_defaults_with_their_numbers() -> None:
    text = " ".join(build_parser().format_help().split())
    assert all(f" {name} {what}" in text for name, what in COMMANDS.items())
    own, book = SweepConfig(), PRESETS["notebook"]
    pairs = {
        "first step": (own.lr.start, book["lr"].start),
        "decay at the first step": (own.weight_decay.start, book["weight_decay"].start),
        "β₁": (own.betas[0], book["betas"][0]),
        "β₂": (own.betas[1], book["betas"][1]),
        "gets there": (own.lr.shape, book["lr"].shape),
        "before stopping": (own.hold, book["hold"]),
        "right to stop": (own.goal, book["goal"]),
    }
    for what, (ours, theirs) in pairs.items():
        assert f"{what} ({ours}; {theirs})" in text
    assert f"at most ({own.steps})" in text
    assert f"trained on ({own.train_frac})" in text
    assert f"kept ({','.join(map(str, own.remainders))})" in text
