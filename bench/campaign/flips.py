"""Bytes flipped anywhere in a finished folder: `load_results` gives what is right, or one line.

Many flips in one process, each undone before the next; nothing but the file it is in differs.
"""

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

from bench.campaign.damages import everything
from bench.campaign.processes import PATIENCE
from bench.campaign.sweeps import Folders

_A_PROCESS = 250  # flips


def flips(draw: random.Random, folders: Folders, n: int) -> dict[str, Any]:
    """Read n folders with flipped bytes in one of their files."""
    found: dict[str, Any] = {"flips": n, "right": 0, "one line": 0, "slowest [s]": 0.0, "wrong": []}
    for start in range(0, n, _A_PROCESS):
        whole, _ = folders.whole(draw.choice(folders.at_paths))
        copy, said = folders.fresh("flipped"), folders.fresh("flips.json")
        shutil.copytree(whole, copy)
        seed, count = draw.random(), min(_A_PROCESS, n - start)

        def work(s: float = seed, c: Path = copy, m: int = count, to: Path = said) -> int:
            to.write_text(json.dumps(_read_flipped(random.Random(s), c, m)))
            return 0

        ended = folders.process(work).end(at_most=600.0)
        if ended.code != 0:
            found["wrong"].append(f"the process ended with {ended.code}: {ended.error[-500:]}")
            continue
        part = json.loads(said.read_text())
        for key in ("right", "one line", "wrong"):
            found[key] += part[key]
        found["slowest [s]"] = max(found["slowest [s]"], round(part["slowest"], 2))
        shutil.rmtree(copy)
    return found


def _read_flipped(draw: random.Random, folder: Path, n: int) -> dict[str, Any]:
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
            what = answer if isinstance(answer, (str, BaseException)) else "another answer"
            where = f"{file.relative_to(folder)}, bytes {places}"
            found["wrong"].append(f"{where}: {seconds:.1f} s, {what!r}"[:500])
    return found


def _answer(folder: Path) -> Any:
    """All that a folder says, the line it is refused with, or what else was raised."""
    import bilinear
    from bilinear.errors import ConfigError, ResultsError

    try:
        return everything(bilinear.load_results(folder))
    except (ConfigError, ResultsError) as error:
        return str(error)
    except Exception as error:
        return error
