"""Parses options; a bad one is an error of one line that suggests the right one."""

import argparse
import re
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from bilinear.errors import ConfigError

# The option that sets each setting of a config, by the name that errors give the setting.
_OPTIONS = {
    "batch size": "--batch-size",
    "train fraction": "--train-frac",
    "eval_every": "--eval-every",
    "init_scale": "--init-scale",
    **{
        name: f"--{name}"
        for name in ("p", "widths", "seeds", "steps", "hold", "goal", "precision", "remainders",
                     "beta1", "beta2", "device", "engine", "out", "resume")
    },
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """Raises ConfigError for a bad argument, and suggests the option that is spelled like it."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, but refuse `--option=--`, for argparse an empty list."""
        for argument in sys.argv[1:] if args is None else args:
            if argument == "--":
                break
            option, _, value = argument.partition("=")
            if option.startswith("-") and value == "--":
                self.error(f"argument {option}: expected a value, got '--'")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise; see the class."""
        _, unknown, rest = message.partition("unrecognized arguments: ")
        known = [option for option in self._option_string_actions if option.startswith("--")]
        close = get_close_matches(rest.partition(" ")[0].partition("=")[0], known, n=1)
        raise ConfigError(f"{message}; did you mean {close[0]}?" if unknown and close else message)


def program() -> str:
    """Return the command as the user typed it: bilinear, python sweep.py or python -m bilinear."""
    name = Path(sys.argv[0]).name
    return {"sweep.py": "python sweep.py", "__main__.py": "python -m bilinear"}.get(
        name, "bilinear"
    )


def naming_options(message: str) -> str:
    """Replace the name of a setting at the start of an error by the option that changes it."""
    found = re.match(r"([\w ]+): ", message)
    option = _OPTIONS.get(found[1]) if found else None
    return f"{option}{message[found.end() - 2 :]}" if found and option else message
