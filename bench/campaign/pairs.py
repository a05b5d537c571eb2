"""Two processes started on one new folder at nearly the same time, with equal or other settings."""

import random
import time
from functools import partial
from typing import Any

from bench.campaign.processes import PATIENCE, Ended
from bench.campaign.sweeps import Folders

_OTHER = ("--weight-decay", "0.3")


def pairs(draw: random.Random, folders: Folders, n: int) -> dict[str, Any]:
    """Run n pairs; each folder must end with the files of one of the two processes alone."""
    # Two processes cannot share a store in memory.
    sweeps = [sweep for sweep in folders.sweeps if sweep.place != "memory"]
    wrong: list[str] = []
    refused = other = 0
    for _ in range(n):
        sweep = draw.choice(sweeps)
        more = draw.choice([(), _OTHER])
        other += more == _OTHER
        out, delay = folders.out(sweep), draw.choice([0.0, draw.uniform(0, 0.3)])
        first = folders.process(partial(sweep.run, out))
        time.sleep(delay)
        second = folders.process(partial(sweep.run, out, *more))
        ended = [first.end(), second.end()]
        settings = [(), more]
        done = [s for e, s in zip(ended, settings, strict=True) if e.code == 0]
        refused += sum(e.code == 2 for e in ended)
        reasons = [_wrong(e) for e in ended]
        if not done:
            reasons.append("neither finished")
        if len(set(done)) > 1:
            reasons.append("both finished, with different settings")
        if done:
            reasons.append(folders.different(out, folders.whole(sweep, *done[0])[0]))
        if any(reasons):
            wrong.append(
                f"{sweep.name}, {more or 'same settings'}: {'; '.join(filter(None, reasons))}"
            )
    return {"pairs": n, "of other settings": other, "refused": refused, "wrong": wrong}


def _wrong(ended: Ended) -> str:
    if ended.code == 0:
        return "" if "Traceback" not in ended.error else ended.error[-500:]
    named = "is being filled by process" in ended.error or "belongs to another" in ended.error
    if ended.code == 2 and ended.seconds > PATIENCE:
        return f"was refused after {ended.seconds:.1f} s"
    if ended.code == 2 and named and ended.error.count("\n") == 1:
        return ""
    return f"ended with {ended.code}: {ended.error[-500:]}"
