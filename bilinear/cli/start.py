"""The command's entry: signals are dealt with before anything is imported that takes time."""

from bilinear.cli.completion import complete_if_asked
from bilinear.cli.signals import leave_at_once


def main() -> int:
    """Run the command of `sys.argv`; returns its exit code."""
    leave_at_once()
    complete_if_asked()
    from bilinear.cli.commands import main as command

    return command()
