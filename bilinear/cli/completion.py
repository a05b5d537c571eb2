"""Completion by Tab, where argcomplete is installed and the shell was told to use it.

`eval "$(register-python-argcomplete bilinear)"` tells it. The shell then starts the command with
`_ARGCOMPLETE` set, reads what it offers, and nothing else is done.
"""

import argparse
import os
from contextlib import suppress


def complete_if_asked() -> None:
    """Offer what may come next and exit, if the shell asks; else return."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    with suppress(ImportError):
        import argcomplete

        argcomplete.autocomplete(_parser(os.environ.get("COMP_LINE", "")), "long")


def _parser(line: str) -> argparse.ArgumentParser:
    """A sweep's options and the commands; after a command, the folder that it is about."""
    from bilinear.cli.commands import COMMANDS, build_parser

    if COMMANDS.keys() & line.split()[1:-1]:
        parser = argparse.ArgumentParser(add_help=False)
        parser.add_argument("folder", nargs="*")
        return parser
    parser = build_parser()
    parser.add_argument("command", nargs="?", choices=COMMANDS)
    return parser
