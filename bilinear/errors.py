"""Errors a user can mend: each message names the argument, what was expected and what came."""


class ConfigError(ValueError):
    """A setting that cannot be run as given."""


class EngineError(RuntimeError):
    """An engine that could not go on: what has ended is kept, and the same command goes on."""


class ResultsError(ValueError):
    """A results folder that is missing, damaged, or belongs to another configuration."""
