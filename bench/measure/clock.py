"""Seconds of one call: the host's clock, or a GPU's own events."""

import subprocess
import sys
import time
from collections.abc import Callable

import torch

Run = Callable[[], object]
Stopwatch = Callable[[Run], float]


def call_seconds(run: Run) -> float:
    """Seconds of a call by the host's clock."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def thread_seconds(run: Run) -> float:
    """CPU time of the calling thread in a call; excludes the time of other programs."""
    start = time.thread_time()
    run()
    return time.thread_time() - start


def sweep_seconds(*options: str) -> float:
    """Seconds of the whole command `python sweep.py --fused`, run in the repository's root."""
    command = [sys.executable, "sweep.py", "--fused", *options]
    return call_seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))


def host_seconds(run: Run) -> float:
    """Seconds of a call, after a call that is not timed.

    OpenMP's threads keep spinning for a while after a contestant's work, which would slow down the
    next contestant.
    """
    run()
    return call_seconds(run)


def event_seconds(run: Run) -> float:
    """Seconds between two CUDA events around a call, on an idle stream."""
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before.record()
    run()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1e3


def stopwatch(device: torch.device | str) -> Stopwatch:
    """The function that times calls on `device`."""
    return event_seconds if torch.device(device).type == "cuda" else host_seconds
