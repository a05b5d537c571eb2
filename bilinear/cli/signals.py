"""Stops at SIGINT or SIGTERM with one line and an exit code, at any moment of a run."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal stopped the command; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        """Keep the signal's number."""
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it."""
        return 128 + self.number


def leave_at_once() -> None:
    """From here on a signal ends the process; for use while there is nothing to undo.

    An exception would print the traceback of the library that is being imported.
    """
    for number in _NUMBERS:
        signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    name = os.path.basename(sys.argv[0]) or "bilinear"
    os.write(2, f"{name}: stopped by {signal.Signals(number).name}\n".encode())
    os._exit(128 + number)


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, the first signal raises Stopped, and a second ends the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        leave_at_once()
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in _NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
