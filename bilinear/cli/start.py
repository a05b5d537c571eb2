"""The command's entry: signals are dealt with before anything is imported that takes time."""

from bilinear.cli.signals import leave_at_once


def main() -> int:
    """Run the command of `sys.argv`; returns its exit code."""
    leave_at_once()
    from bilinear.cli.commands import main as command

    return command()
