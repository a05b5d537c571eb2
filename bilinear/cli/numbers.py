"""Parses the values of options: integers, numbers, lists of them, and paths.

Only ASCII digits, and few of them: `int` and `float` accept other scripts' digits, underscores and
text of any length.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bilinear.errors import ConfigError, shown
from bilinear.experiment.study import MAX_MODELS

_T = TypeVar("_T")

_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,4})?")
_MOST_CHARACTERS = 10_000_000


def integer(text: str) -> int:
    """Parse `64`; raises ConfigError."""
    if not _INTEGER.fullmatch(text.strip(" ")):
        raise ConfigError(f"expected an integer of at most 19 digits, got {shown(text)}")
    return int(text)


def number(text: str) -> float:
    """Parse `0.3` or `3e-1`; raises ConfigError."""
    if not _NUMBER.fullmatch(text.strip(" ")):
        raise ConfigError(f"expected a number such as 0.3 or 3e-1, got {shown(text)}")
    return float(text)


def integers(text: str) -> tuple[int, ...]:
    """Parse `64,32,16`, `1..64` or `64..1`; raises ConfigError, for more than MAX_MODELS too."""
    values: list[int] = []
    for part in _parts(text):
        first, dots, last = part.partition("..")
        try:
            a, b = integer(first), integer(last if dots else first)
        except ConfigError:
            wanted = "expected integers of at most 19 digits, such as 64,32 or 1..64"
            raise ConfigError(f"{wanted}, got {shown(text)}") from None
        if len(values) + abs(b - a) >= MAX_MODELS:
            raise ConfigError(f"expected at most {MAX_MODELS:,} integers, got {shown(text)}")
        values.extend(range(a, b + 1) if a <= b else range(a, b - 1, -1))
    return tuple(values)


def numbers(text: str) -> tuple[float, ...]:
    """Parse `0.03,0.05`; raises ConfigError."""
    try:
        return tuple(number(part) for part in _parts(text))
    except ConfigError:
        raise ConfigError(f"expected numbers such as 0.3,0.5, got {shown(text)}") from None


def _parts(text: str) -> list[str]:
    if len(text) > _MOST_CHARACTERS:
        raise ConfigError(f"expected at most {_MOST_CHARACTERS:,} characters, got {len(text):,}")
    return text.split(",")


def path(text: str) -> Path:
    """Parse the path of a file or a folder; raises ConfigError for one that no file can have."""
    if not text or "\0" in text:
        raise ConfigError(f"expected a path, got {shown(text)}")
    return Path(text)


def option(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """Make an option's `type` for argparse of a function that raises ConfigError."""

    def parsed(text: str) -> _T:
        try:
            return parse(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed


WHOLE, REAL, PATH = option(integer), option(number), option(path)
INTEGERS, REALS = option(integers), option(numbers)
