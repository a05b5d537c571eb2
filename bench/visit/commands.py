"""Commands that an item starts, with a time limit; their output is written to a log file.

A command and all processes that it started have ended when the item continues.
"""

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Done:
    """How a command ended; `exit` is None if its time ran out."""

    exit: int | None
    seconds: float
    output: str

    def summary(self, characters: int = 4000) -> dict[str, object]:
        """Exit code, seconds and the end of the output, where errors are, for a JSON file."""
        ended = "time ran out" if self.exit is None else self.exit
        return {"exit": ended, "seconds": self.seconds, "output": self.output[-characters:]}


def run(command: list[str], seconds: float, log: Path, **environment: str) -> Done:
    """Run a command in the repository for at most `seconds`, its output written to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        )  # fmt: skip
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
    return Done(code, time.monotonic() - start, log.read_text(errors="replace"))


def end(process: subprocess.Popen) -> None:
    """Kill a command and the processes that it started, if any still run."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
