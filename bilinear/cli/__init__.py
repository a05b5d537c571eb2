"""The command line: options, commands, progress and reports."""
