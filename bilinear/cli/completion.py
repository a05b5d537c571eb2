"""Completion by Tab, where argcomplete is installed and the shell set up to use it.

`eval "$(register-python-argcomplete bilinear)"` sets it up. The shell then starts the command with
`_ARGCOMPLETE` set and reads the words that argcomplete prints; the command does nothing else.
"""

import argparse
import os
from contextlib import suppress


def complete_if_asked() -> None:
    """Print the words that may follow and exit if the shell wants completion; else return."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    with suppress(ImportError):
        import argcomplete

        argcomplete.autocomplete(_parser(os.environ.get("COMP_LINE", "")), "long")


def _parser(line: str) -> argparse.ArgumentParser:
    """Complete options and commands; after the name of a command, folders alone."""
    from bilinear.cli.options import COMMANDS, build_parser

    if COMMANDS.keys() & line.split()[1:-1]:
        parser = argparse.ArgumentParser(add_help=False)
        parser.add_argument("folder", nargs="*")
        return parser
    parser = build_parser()
    parser.add_argument("command", nargs="?", choices=COMMANDS)
    return parser
