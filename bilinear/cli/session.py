"""Writes `sessions.json`: an entry for every run that wrote in a results folder.

No other file of a finished folder differs between two runs of the same sweep. What the bits of a
model depend on is in `environment.json`.
"""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

import bilinear
from bilinear.results.folder import Folder, open_folder
from bilinear.training.backend import Backend, processor

FILE = "sessions.json"


def session(backend: Backend) -> dict[str, object]:
    """Describe this run: command, date, versions, commit where there is one, device, threads."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "bilinear": bilinear.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "commit": _commit(),
        "backend": f"{backend.name}: {backend.reason}",
        "device": processor(backend),
        "models_at_once": backend.at_once,
        "cores": os.cpu_count(),
        "system": platform.platform(),
    }


def record(folder: Folder, entry: Mapping[str, object]) -> None:
    """Add an entry to the folder's sessions; a damaged file is replaced by a new one."""
    entries: list[object] = []
    with suppress(FileNotFoundError, ValueError, TypeError, RecursionError):
        entries = list(json.loads(folder.read(FILE)))
    content = json.dumps([*entries, entry], indent=2, ensure_ascii=False) + "\n"
    folder.write(FILE, content.encode(errors="backslashreplace"))  # a path may be no UTF-8


_Event = TypeVar("_Event")


def recording(
    on_event: Callable[[int, _Event], None], out: str, backend: Backend
) -> Callable[[int, _Event], None]:
    """Pass events on; record this run at the first of them, when the folder exists."""
    waiting = [session(backend)]

    def passed_on(index: int, event: _Event) -> None:
        if waiting:
            record(open_folder(out), waiting.pop())
        on_event(index, event)

    return passed_on


def _commit() -> str | None:
    """Commit of the checkout that the library runs from; None for an installed library."""
    root = Path(bilinear.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()
    return None
