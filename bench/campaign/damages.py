"""One file of a results folder is damaged; then the folder is read, checked and run again.

The folder is of a finished run or of a killed one. Reading must return the right results or raise
an error of one line; `check` must report the damage, unless the file is one of `_UNCHECKED`; the
same command, run again, must restore the folder.
"""

import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench.campaign.processes import PATIENCE, Ended
from bench.campaign.sweeps import Folders, Sweep, files
from bilinear.results.folder import final_name

# A finished run has removed its lock, so only the content of a killed run's lock is damaged.
_LOCK = "owner.lock"
_UNCHECKED = {"sessions.json", _LOCK}
Harm = Callable[[random.Random, Path, Path], str]


def _flip(draw: random.Random, folder: Path, file: Path) -> str:
    content = bytearray(file.read_bytes())
    for _ in range(draw.choice([1, 1, 2, 20])):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
    return "flipped"


def _cut(draw: random.Random, folder: Path, file: Path) -> str:
    content = file.read_bytes()
    file.write_bytes(content[: draw.randrange(len(content))])
    return "cut"


def _longer(draw: random.Random, folder: Path, file: Path) -> str:
    file.write_bytes(file.read_bytes() + draw.randbytes(draw.randint(1, 500)))
    return "longer"


def _zeros(draw: random.Random, folder: Path, file: Path) -> str:
    content = bytearray(file.read_bytes())
    start = draw.randrange(len(content))
    block = content[start : start + 512]
    content[start : start + 512] = bytes(len(block))
    file.write_bytes(content)
    return "a block of zeros"


def _noise(draw: random.Random, folder: Path, file: Path) -> str:
    file.write_bytes(draw.randbytes(draw.randrange(2000)))
    return "noise"


def _json(draw: random.Random, folder: Path, file: Path) -> str:
    texts = ["", "[1]", "null", "{}", "[" * 100_000, '{"a": ' * 50_000, '{"p": 7}', '"x"', "1e999"]
    file.write_text(draw.choice(texts))
    return "other JSON"


def _gone(draw: random.Random, folder: Path, file: Path) -> str:
    file.unlink()
    return "gone"


def _another(draw: random.Random, folder: Path, file: Path) -> str:
    others = [f for f in file.parent.iterdir() if f.is_file() and f != file]
    shutil.copy(draw.choice(others), file)
    return "another file's content"


def _renamed(draw: random.Random, folder: Path, file: Path) -> str:
    names = [f"d{draw.randrange(99):03d}-s{draw.randrange(99):04d}.safetensors", "000009.zip", "x"]
    name = draw.choice(names)
    if not (file.parent / name).exists():
        file.rename(file.parent / name)
    return f"renamed {name}"


def _linked(draw: random.Random, folder: Path, file: Path) -> str:
    elsewhere = folder.parent / f"{folder.name}-elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    return "a link out of the folder"


HARMS: list[Harm] = [
    _flip, _flip, _flip, _cut, _longer, _zeros, _noise, _json, _gone, _another, _renamed, _linked,
]  # fmt: skip


def damages(draw: random.Random, folders: Folders, n: int) -> dict[str, Any]:
    """Damage n folders, one in three of a run that was killed."""
    wrong: list[str] = []
    kinds: Counter[str] = Counter()
    by_file: Counter[str] = Counter()
    slowest, unfinished = 0.0, 0
    while kinds.total() < n:
        sweep = draw.choice(folders.at_paths)
        whole, seconds = folders.whole(sweep)
        copy = folders.fresh("damaged")
        if killed := draw.random() < 1 / 3:
            _killed(folders, sweep, copy, draw.uniform(0, seconds))
        else:
            shutil.copytree(whole, copy)
        names = [name for name in [*files(copy), *_UNCHECKED] if _can_be_damaged(copy / name)]
        if not names:
            continue  # the run was killed before it wrote anything
        name = draw.choice(sorted(names))
        before = _digest(copy)
        kind = draw.choice(HARMS[:-3] if name == _LOCK else HARMS)(draw, copy, copy / name)
        if _digest(copy) == before and kind != "a link out of the folder":
            continue
        unfinished += killed
        kinds[kind.split(" ")[0]] += 1
        by_file[kind_of_file(Path(name).name)] += 1
        read = folders.process(partial(_read, copy, whole)).end()
        checked = folders.process(partial(sweep.command, "check", str(copy))).end()
        again = folders.process(partial(sweep.run, str(copy))).end()
        slowest = max(slowest, read.seconds, checked.seconds)
        reasons = [*_read_wrong(read), *_checked_wrong(checked, name, kind, killed)]
        if again.code != 0 or "Traceback" in again.error:
            if not _is_refused_rightly(copy, again):
                reasons.append(f"run again it ended with {again.code}: {again.error[-400:]}")
        else:
            _remove_stray(copy / name, kind)
            reasons.append(folders.different(str(copy), whole))
        if any(reasons):
            what = f"{sweep.name}{', killed' * killed}, {name} {kind}"
            wrong.append(f"{what}: {'; '.join(filter(None, reasons))}")
        shutil.rmtree(copy)
    return {
        "damages": n, "of a killed run": unfinished, "kinds": dict(kinds),
        "files": dict(by_file), "slowest reading": round(slowest, 2), "wrong": wrong,
    }  # fmt: skip


def kind_of_file(name: str) -> str:
    """Remove a model's width and seed, or a pack's number, from the name of a file."""
    return re.sub(r"^(d\d+-s)?\d+", "", name)


def _killed(folders: Folders, sweep: Sweep, out: Path, moment: float) -> None:
    process = folders.process(partial(sweep.run, str(out)))
    time.sleep(moment)
    process.kill()
    process.end()
    out.mkdir(exist_ok=True)


def _can_be_damaged(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0 and final_name(file.name) is None


def _digest(folder: Path) -> list[tuple[str, bytes]]:
    return [(str(f), f.read_bytes()) for f in sorted(folder.rglob("*")) if f.is_file()]


def _is_refused_rightly(folder: Path, again: Ended) -> bool:
    """Whether a run was killed before it wrote whose the folder is, and another left it alone."""
    is_unknown = not any((folder / name).exists() for name in ("config.json", "study.json"))
    return is_unknown and again.code == 2 and "expected a new folder" in again.error


def _remove_stray(file: Path, kind: str) -> None:
    """Remove a renamed file whose suffix no sweep uses in that folder: a sweep leaves it there."""
    stray = file.parent / kind.removeprefix("renamed ")
    ours = {"models": ".safetensors", "packs": ".zip"}.get(file.parent.name)
    if kind.startswith("renamed ") and stray.suffix != ours:
        stray.unlink(missing_ok=True)


def _read(copy: Path, whole: Path) -> int:
    """Read the damaged copy; returns 0 for the right results, 2 for an error, 3 for wrong ones."""
    import sys

    import bilinear
    from bilinear.errors import ConfigError, ResultsError

    try:
        got = everything(bilinear.load_results(copy))
    except (ConfigError, ResultsError) as error:
        print(error, file=sys.stderr)
        return 2
    right = everything(bilinear.load_results(whole))
    if got["complete"]:
        return 0 if got == right else 3
    # In an incomplete folder, the settings and models that it holds must be right.
    held = (item for item in got.items() if item[0] not in ("complete", "table"))
    return 0 if all(right.get(key) == value for key, value in held) else 3


def everything(results: Any) -> dict[str, Any]:
    """Return all settings, weights and histories of a results folder, to be compared."""
    found: dict[str, Any] = {"complete": results.complete, "table": results.table.to_csv()}
    for sweep in results.begun if hasattr(results, "begun") else [results]:
        where = str(sweep.folder).rpartition("/cells/")[2] if "/cells/" in str(sweep.folder) else ""
        found[f"{where} config"] = sweep.config
        for job in sweep.jobs:
            state = {name: tensor.tolist() for name, tensor in sweep.models[job].items()}
            found[f"{where} {job}"] = (state, sweep.histories[job].to_csv())
    return found


def _read_wrong(ended: Ended) -> list[str]:
    if ended.seconds > PATIENCE:
        return [f"reading took {ended.seconds:.1f} s"]
    if ended.code in (0, 2) and ended.error.count("\n") == (ended.code == 2):
        return []
    return [f"reading ended with {ended.code}: {ended.error[-400:]}"]


def _checked_wrong(ended: Ended, name: str, kind: str, killed: bool) -> list[str]:
    if ended.seconds > PATIENCE:
        return [f"check took {ended.seconds:.1f} s"]
    if "Traceback" in ended.error or ended.code not in (0, 1, 2):
        return [f"check ended with {ended.code}: {ended.error[-400:]}"]
    # A killed run has no list of its files, so `check` cannot find one missing.
    missed = killed and kind.startswith(("gone", "renamed"))
    if ended.code == 0 and Path(name).name not in _UNCHECKED and not missed:
        return ["check did not report it"]
    return []
