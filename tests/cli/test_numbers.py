"""Values of options: which are accepted, and that any other is refused in one line at once."""

import io
import random
import sys
import time
from pathlib import Path

import pytest

from bilinear.cli.commands import main
from bilinear.cli.numbers import integer, integers, number, numbers
from bilinear.errors import ConfigError
from bilinear.experiment.study import MAX_MODELS


def test_accepted_values() -> None:
    assert integer(" 64") == 64
    assert integer("-3") == -3
    assert number("3e-1") == number(".3") == number("0.30") == 0.3
    assert integers("3,1..2, 9..7") == (3, 1, 2, 9, 8, 7)
    assert numbers("0.1,2") == (0.1, 2.0)


BAD_INTEGERS = ["", " ", "²", "٣", "٣²", "1_0", "1.0", "0x1", "9" * 20, "9" * 5000, "--1", "1\n"]


@pytest.mark.parametrize("text", BAD_INTEGERS)
def test_no_integer(text: str) -> None:
    for parse in (integer, integers):
        with pytest.raises(ConfigError, match="expected") as refused:
            parse(text)
        assert len(str(refused.value)) < 300


@pytest.mark.parametrize("text", ["", "nan", "inf", "1_0", "٣.٣", "1e99999", "0x1p3", "1" * 5000])
def test_no_number(text: str) -> None:
    for parse in (number, numbers):
        with pytest.raises(ConfigError, match=r"expected .*number"):
            parse(text)


@pytest.mark.parametrize(
    "text",
    ["..", "1..", "..1", "1...2", "1,,2", ",", "1..99999999999", "x" * 20_000_000,
     ",".join(["1..999999"] * 3)],
)  # fmt: skip
def test_no_list(text: str) -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError, match="expected"):
        integers(text)
    assert time.monotonic() - began < 2
    assert len(integers(f"1..{MAX_MODELS}")) == MAX_MODELS


MALFORMED = [
    ["--p", "²"], ["--p", "٣²"], ["--p", "9" * 5000], ["--p", "99999999999999999999"],
    ["--p", "100000000"], ["--p", "2..16384"], ["--seeds", "18446744073709551616,1"],
    ["--widths", "10000000"], ["--widths", "1..3000", "--seeds", "3000", "--dry-run"],
    ["--engine", "ray", "--device", "tpu"], ["--widths", ""], ["--out", ""], ["--resume", ""],
    ["--seeds", ""], ["--p", ""], ["--lr", ""], ["--remainders", ""], ["--batch-size", "²"],
    ["--lr", "1e30"], ["--lr", "1e-320"], ["--weight-decay", "1e30"], ["--init-scale", "1e30"],
    ["--init-scale", "1e-320"], ["--lr", "x" * 10_000_000], ["--steps", "1e3"],
    ["--steps", "9" * 20], ["--epochs", "99999999999999"], ["--out", "a\0b"],
    ["--out", "/dev/null"], ["--x" * 100_000], ["--lr-end", "nan"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", MALFORMED, ids=lambda a: " ".join(a)[:40].replace("\0", "0"))
def test_a_malformed_command_is_one_short_line_at_once(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    assert main(["--fused", "--quiet", *arguments]) == 2
    assert time.monotonic() - began < 5
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert len(error) < 2500
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [["view", "--out", ""], ["show", ""], ["check", ""], ["runs", ""], ["show", "a[bold]b[/x]"],
     ["show", "a\nb"], ["export", "x", "--format", "notebook", "--file", ""], ["view", "\0"]],
)  # fmt: skip
def test_malformed_commands_of_the_others(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_path_with_markup_in_it_is_shown_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a[bold]b[/x]"
    sweep = ["--fused", "--p", "3", "--widths", "2", "--steps", "5", "--out", str(out)]
    assert main(sweep) == 0
    assert main(["show", str(out)]) == 0
    assert f"results in {out}" in capsys.readouterr().out


def test_a_path_that_no_encoding_holds_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8"))
    out = tmp_path / "\udcff"
    assert main(["--fused", "--p", "3", "--widths", "2", "--steps", "5", "--out", str(out)]) == 0
    sys.stdout.flush()
    assert rb"\udcff" in written.getvalue()


def test_random_text_is_refused_or_read_the_way_python_does() -> None:
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    for _ in range(3000):
        text = "".join(draw.choice("0123456789+-._eE ,²٣") for _ in range(draw.randrange(8)))
        for mine, pythons in ((integer, int), (number, float)):
            try:
                got = mine(text)
            except ConfigError:
                continue
            assert got == pythons(text), f"seed {seed}: {text!r}"
