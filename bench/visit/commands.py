"""Commands that an item starts: their output goes to a file as it comes, and none outlives it."""

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
        """The end of a command's output for JSON: errors stand there."""
        ended = "time ran out" if self.exit is None else self.exit
        return {"exit": ended, "seconds": self.seconds, "output": self.output[-characters:]}


def run(command: list[str], seconds: float, log: Path, **environment: str) -> Done:
    """Run a command in the repository for at most `seconds`; keeps its output in `log`."""
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
    """Kill what is left of a command and of the processes it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
