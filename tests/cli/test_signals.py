"""A signal at any moment: one line, its exit code, and a folder in which a run can go on."""

import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import bilinear
from bilinear.cli.commands import main
from bilinear.cli.signals import Stopped, stoppable

ROOT = Path(__file__).parents[2]
SWEEP = ["--fused", "--p", "11", "--widths", "9..6", "--steps", "3000", "--hold", "300"]


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_middle_of_a_run(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "run"
    process = started("sweep.py", *SWEEP, "--out", str(out))
    deadline = time.monotonic() + 60
    while not list(out.glob("models/*.safetensors")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    error = process.communicate()[1]
    assert process.returncode == 128 + number
    assert error.count("\n") == 1
    assert f"--resume {out} goes on" in error
    assert 0 < len(bilinear.load_results(out).jobs) <= 4
    assert main([*SWEEP, "--out", str(out)]) == 0


@pytest.mark.parametrize("entry", [["sweep.py"], ["-m", "bilinear"]])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_during_the_start(tmp_path: Path, entry: list[str], number: signal.Signals) -> None:
    """The first 0.3 s are left out: Python is starting, and the command has set no handler."""
    for _ in range(3):
        seconds = random.uniform(0.3, 1.5)
        process = started(*entry, *SWEEP, "--steps", "100000", "--out", str(tmp_path / "run"))
        time.sleep(seconds)
        process.send_signal(number)
        error = process.communicate()[1]
        assert process.returncode == 128 + number, f"after {seconds} s: {error}"
        assert "stopped" in error
        assert error.count("\n") == 1, f"after {seconds} s: {error}"


def test_the_first_signal_raises_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped, stoppable():
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_in_a_thread_it_does_nothing() -> None:
    entered = []

    def enter() -> None:
        with stoppable():
            entered.append(True)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [True]
