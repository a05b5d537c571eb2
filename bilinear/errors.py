"""Errors a user can mend: each message names the argument, what was expected and what came."""

from collections.abc import Iterator
from contextlib import contextmanager


class ConfigError(ValueError):
    """A setting that cannot be run as given."""


class OtherVersionError(ConfigError):
    """Settings that another version wrote and that this one can't have."""


class EngineError(RuntimeError):
    """An engine that could not go on: what has ended is kept, and the same command goes on."""


class ResultsError(ValueError):
    """A results folder that is missing, damaged, or belongs to another configuration."""


def shown(value: object) -> str:
    """Write a value in a message: whole if it is short, else its two ends."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:60]} … {text[-40:]}"


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Say which extra to install where an import inside fails for want of it."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{error}; pip install 'bilinear[{name}]' has it") from error
