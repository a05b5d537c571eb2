"""Processes killed at random moments; run again, each must end with an undisturbed run's files."""

import random
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from bench.campaign.memory import KILL
from bench.campaign.sweeps import Folders, Sweep, in_store


def kills(draw: random.Random, folders: Folders, n: int) -> dict[str, Any]:
    """Kill n processes, several in every second folder; one that ended before is not counted."""
    killed = cases = voids = often = 0
    by_sweep: Counter[str] = Counter()
    wrong: list[str] = []
    models_kept = 0
    while killed < n:
        sweep = draw.choice(folders.sweeps)
        whole, seconds = folders.whole(sweep)
        out = folders.out(sweep)
        times = 1 if 2 * often > cases else draw.randint(2, 4)
        did = 0
        while did < times and _killed_at(folders, sweep, out, draw.uniform(0, seconds)):
            did += 1
        voids += did < times
        there = _models(out)
        ended = folders.process(partial(sweep.run, out)).end()
        reason = _wrong(ended, folders.different(out, whole) if ended.code == 0 else "")
        if not reason and _models(out) is not None and there is not None:
            models_kept += len(there)
            if not there <= (_models(out) or set()) and not sweep.packed:
                reason = "a model that had ended is gone"
        if reason:
            wrong.append(f"{sweep.name}, killed {did} times: {reason}")
        if did:
            killed, cases, often = killed + did, cases + 1, often + (did > 1)
            by_sweep[sweep.name] += did
    return {
        "kills": killed,
        "folders": cases,
        "of these killed more than once": often,
        "by sweep": dict(by_sweep),
        "models there at the last kill": models_kept,
        "had ended before the kill, not counted": voids,
        "wrong": wrong,
    }


def _killed_at(folders: Folders, sweep: Sweep, out: str, moment: float) -> bool:
    """Start a run and kill it after `moment` seconds; False if it had ended before."""
    process = folders.process(partial(sweep.run, out))
    time.sleep(moment)
    working = process.running()
    process.kill(KILL if sweep.place == "memory" else signal.SIGKILL)
    code = process.end().code
    return working and code in (-signal.SIGKILL, -KILL)


def _models(out: str) -> set[str] | None:
    """Names of the models' files outside packs; None for a folder in a store."""
    if in_store(out):
        return None
    folder = Path(out.removeprefix("file://"))
    return {str(f.relative_to(folder)) for f in folder.rglob("models/*.safetensors")}


def _wrong(ended: Any, different: str) -> str:
    if ended.code != 0:
        return f"run again it ended with {ended.code}: {ended.error[-500:]}"
    if "mended:" in ended.output:
        return f"a kill left damage: {ended.output}"
    if "Traceback" in ended.error:
        return f"traceback: {ended.error[-500:]}"
    return different
