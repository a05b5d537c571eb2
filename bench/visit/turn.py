"""A turn of a part: its next items, one after the other, each saved when it ends.

An item that exceeds its time ends the process. If an item raises an exception, the error is written
to the file, and the next item starts.
"""

import faulthandler
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from bench.measure.environment import clocks, environment
from bench.visit import stand_ins
from bench.visit.items import Item, Visit, read, write
from bench.visit.parts import PARTS


def work(name: str, path: Path, visit: Visit, turn: float) -> None:
    """Run the part's items that have no result in its file.

    None is started after `turn` seconds, and none runs beyond `visit.end`.
    """
    until = time.time() + turn
    items = PARTS[name].items(visit)
    if visit.quick:
        items = stand_ins.among(items, list(PARTS).index(name))
    content = read(path)
    if "environment" not in content:
        content |= {
            "part": name,
            "environment": {**environment(), "clocks as found": clocks()},
            "quick": visit.quick,
            "seconds": 0.0,
            "items": {},
        }
    for item in items:
        if item.key not in content["items"]:
            content["left"] = [one.key for one in items if one.key not in content["items"]]
            if time.time() > until or (visit.left < item.least and not visit.quick):
                break
            _one(item, content, path, visit)
    content["left"] = [one.key for one in items if one.key not in content["items"]]
    PARTS[name].finish(content, visit)
    write(path, content)


def _one(item: Item, content: dict[str, Any], path: Path, visit: Visit) -> None:
    content["running"] = item.key
    write(path, content)
    start = time.monotonic()
    faulthandler.dump_traceback_later(item.seconds(visit) + 2, exit=True)
    try:
        found = item.run(visit)
    except Exception as error:  # whatever a compiler or a device may raise
        found = {"failed": f"{type(error).__name__}: {error}"[:2000]}
        traceback.print_exc()
    finally:
        faulthandler.cancel_dump_traceback_later()
    seconds = time.monotonic() - start
    found["seconds of this item"] = seconds
    content["items"][item.key] = found
    del content["running"]
    write(path, content)
    summary = found.get("failed") or found.get("left out") or found.get("told", "done")
    print(f"  {item.key}: {summary} ({seconds:.0f} s)", flush=True)
    if "failed" in found and visit.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.synchronize()  # raises an error if the device has failed
