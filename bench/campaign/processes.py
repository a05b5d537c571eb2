"""Processes forked after the slow imports, so that their work begins at once.

The parent never uses an object store: a forked child would inherit its client without its thread.
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
# Seconds between two looks at a process; anything longer means that this program was stopped too.
_LONGEST_LOOK = 0.25


class Ended(NamedTuple):
    """How a process ended: its exit code, negative for a signal; None if it took too long.

    `seconds` leaves out the time in which this program itself did not run, but never time that
    the process computed.
    """

    code: int | None
    said: str
    error: str
    seconds: float


class Process:
    """A child that runs `work` and exits with what it returns."""

    def __init__(self, work: Callable[[], int], scratch: Path) -> None:
        """Start it; `scratch` is a folder of its own."""
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
            for stream, name in ((1, "said"), (2, "error")):
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
        """Whether it still runs."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Kill it, without a chance to do anything more."""
        os.kill(self.pid, how)

    def end(self, at_most: float = 60.0) -> Ended:
        """Wait for its end; one that takes longer is killed."""
        looked = time.monotonic()
        seconds, late = looked - self._began, False
        while self.running():
            if seconds > at_most and not late:
                late = True
                self.kill()
            time.sleep(0.002)
            now = time.monotonic()
            seconds += min(now - looked, _LONGEST_LOOK)
            looked = now
        _, status, used = os.wait4(self.pid, 0)
        seconds = max(seconds, used.ru_utime + used.ru_stime)
        code = None if late else os.waitstatus_to_exitcode(status)
        said, error = (
            (self.scratch / name).read_text(encoding="utf-8", errors="replace")
            if (self.scratch / name).exists()
            else ""
            for name in ("said", "error")
        )
        return Ended(code, said, error, seconds)


def warm_up() -> None:
    """Import what children need, and keep them to one thread each."""
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
