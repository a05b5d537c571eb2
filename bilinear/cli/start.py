"""The command's entry point: sets up signals before the imports that take time."""

from bilinear.cli.completion import complete_if_asked
from bilinear.cli.signals import leave_at_once


def main() -> int:
    """Run the command of `sys.argv`; returns its exit code."""
    leave_at_once()
    complete_if_asked()
    from bilinear.cli.commands import main as command

    return command()
