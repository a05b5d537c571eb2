"""Processes forked after the slow imports, so that their work starts at once.

The parent must not use an object store: a forked child would inherit the client of the store
without the thread that the client needs.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# Seconds; a read or a refusal that takes longer counts as a hang.
PATIENCE = 5.0
# The most seconds between two polls of a process that count as its time: after a longer pause, this
# program was suspended, and probably the process, too.
_LONGEST_POLL = 0.25


class Ended(NamedTuple):
    """How a process ended.

    `code` is the exit code, negative for a signal, None if the process was killed for taking too
    long. `seconds` leaves out time in which this program was suspended, but is at least the
    processor time of the process.
    """

    code: int | None
    output: str
    error: str
    seconds: float


class Process:
    """A child that runs `work` and exits with what it returns."""

    def __init__(self, work: Callable[[], int], scratch: Path) -> None:
        """Start the process; `scratch` is created as its working directory."""
        scratch.mkdir(parents=True)
        self.scratch, self._began = scratch, time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(work)

    def _run(self, work: Callable[[], int]) -> None:
        code = 70
        try:
            for stream, name in ((1, "output"), (2, "error")):
                target = os.open(self.scratch / name, os.O_WRONLY | os.O_CREAT)
                os.dup2(target, stream)
            os.chdir(self.scratch)
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def running(self) -> bool:
        """Whether the process still runs."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal: SIGKILL, which a process cannot handle, unless another is given."""
        os.kill(self.pid, how)

    def end(self, at_most: float = 60.0) -> Ended:
        """Wait for the end; a process that takes more than `at_most` seconds is killed."""
        polled = time.monotonic()
        seconds, late = polled - self._began, False
        while self.running():
            if seconds > at_most and not late:
                late = True
                self.kill()
            time.sleep(0.002)
            now = time.monotonic()
            seconds += min(now - polled, _LONGEST_POLL)
            polled = now
        _, status, used = os.wait4(self.pid, 0)
        seconds = max(seconds, used.ru_utime + used.ru_stime)
        code = None if late else os.waitstatus_to_exitcode(status)
        output, error = (
            (self.scratch / name).read_text(encoding="utf-8", errors="replace")
            if (self.scratch / name).exists()
            else ""
            for name in ("output", "error")
        )
        return Ended(code, output, error, seconds)


def warm_up() -> None:
    """Import the modules that child processes need, and limit torch to one thread each."""
    import importlib

    import torch

    torch.set_num_threads(1)
    for name in (
        "bilinear.cli.commands", "bilinear.cli.report", "bilinear.cli.session", "bilinear.plots",
        "bilinear.training.run", "bilinear.training.engine", "bilinear.results.open",
        "bilinear.training.forecast.calibration", "bilinear.layer.modules", "bilinear.functional",
        "bilinear.reading", "pandas", "pyarrow.parquet", "rich.live", "fsspec", "s3fs",
        "bilinear.results.verify", "bilinear.page.write", "matplotlib.backends.backend_agg",
    ):  # fmt: skip
        importlib.import_module(name)
