"""Errors a user can mend: each message names the argument, what was expected and its value."""

from collections.abc import Iterator
from contextlib import contextmanager


class ConfigError(ValueError):
    """A setting with which no sweep can run."""


class OtherVersionError(ConfigError):
    """Settings that another version wrote and this version does not have."""


class EngineError(RuntimeError):
    """An engine failed: models that ended are kept, and the same command trains the rest."""


class ResultsError(ValueError):
    """A results folder that is missing, damaged, or belongs to another configuration."""


def shown(value: object) -> str:
    """Return a value's text for a message: the whole if it is short, else its two ends."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:60]} … {text[-40:]}"


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Name the extra to install if an import inside fails."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{error}; pip install 'bilinear[{name}]' has it") from error
