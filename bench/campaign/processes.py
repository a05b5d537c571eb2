"""Processes that are forked warm: what takes a second to import is there when their work begins.

The parent never touches an object store: a fork would share its client's thread.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Ended(NamedTuple):
    """How a process ended: its exit code, negative for a signal; None if it took too long."""

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

    def kill(self) -> None:
        """Kill it, without a chance to do anything more."""
        os.kill(self.pid, signal.SIGKILL)

    def end(self, at_most: float = 60.0) -> Ended:
        """Wait for its end; one that takes longer is killed."""
        deadline, late = self._began + at_most, False
        while self.running():
            if time.monotonic() > deadline and not late:
                late = True
                self.kill()
            time.sleep(0.002)
        seconds = time.monotonic() - self._began
        _, status = os.waitpid(self.pid, 0)
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
