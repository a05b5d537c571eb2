"""Bytes flipped in a finished folder: `load_results` must return the right results or refuse.

The error must be of one line. One process reads many folders in turn; each has flipped bytes in one
file, which is restored before the next.
"""

import json
import random
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

from bench.campaign.damages import everything
from bench.campaign.processes import PATIENCE
from bench.campaign.sweeps import Folders

_FLIPS_PER_PROCESS = 250


def flips(draw: random.Random, folders: Folders, n: int) -> dict[str, Any]:
    """Read n folders with flipped bytes in one of their files."""
    found: dict[str, Any] = {"flips": n, "right": 0, "one line": 0, "slowest [s]": 0.0, "wrong": []}
    for start in range(0, n, _FLIPS_PER_PROCESS):
        whole, _ = folders.whole(draw.choice(folders.at_paths))
        copy, report = folders.fresh("flipped"), folders.fresh("flips.json")
        shutil.copytree(whole, copy)
        seed, count = draw.random(), min(_FLIPS_PER_PROCESS, n - start)
        work = partial(_read_flipped, random.Random(seed), copy, count, report)
        ended = folders.process(work).end(at_most=600.0)
        if ended.code != 0:
            found["wrong"].append(f"the process ended with {ended.code}: {ended.error[-500:]}")
            continue
        part = json.loads(report.read_text())
        for key in ("right", "one line", "wrong"):
            found[key] += part[key]
        found["slowest [s]"] = max(found["slowest [s]"], round(part["slowest"], 2))
        shutil.rmtree(copy)
    return found


def _read_flipped(draw: random.Random, folder: Path, n: int, report: Path) -> int:
    right = _answer(folder)
    names = sorted(f for f in folder.rglob("*") if f.is_file() and f.stat().st_size)
    found: dict[str, Any] = {"right": 0, "one line": 0, "slowest": 0.0, "wrong": []}
    for _ in range(n):
        file = draw.choice(names)
        content = file.read_bytes()
        changed = bytearray(content)
        places = draw.sample(range(len(content)), min(len(content), draw.choice([1, 1, 1, 2, 20])))
        for place in places:
            changed[place] ^= draw.randint(1, 255)
        file.write_bytes(changed)
        began = time.process_time()
        answer = _answer(folder)
        seconds = time.process_time() - began
        file.write_bytes(content)
        found["slowest"] = max(found["slowest"], seconds)
        if isinstance(answer, str) and "\n" not in answer and seconds < PATIENCE:
            found["one line"] += 1
        elif answer == right and seconds < PATIENCE:
            found["right"] += 1
        else:
            what = answer if isinstance(answer, (str, BaseException)) else "wrong results"
            where = f"{file.relative_to(folder)}, bytes {places}"
            found["wrong"].append(f"{where}: {seconds:.1f} s, {what!r}"[:500])
    report.write_text(json.dumps(found))
    return 0


def _answer(folder: Path) -> Any:
    """Read a folder; returns its results, the message of a refusal, or any other exception."""
    import bilinear
    from bilinear.errors import ConfigError, ResultsError

    try:
        return everything(bilinear.load_results(folder))
    except (ConfigError, ResultsError) as error:
        return str(error)
    except Exception as error:
        return error
