"""Runs the items of one part in turn: `python -m bench.visit.worker PART FOLDER --end T`.

It is a process of its own, because after an illegal address on a GPU every further CUDA call of the
process fails. The part's file names the item that is running: if the process dies, bench.gpu, which
started it, marks that item as failed. An item that exceeds its time ends the process. If an item
raises an exception, the error is written to the file, and the next item starts.
"""

import argparse
import faulthandler
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

# Without a GPU, kernels run under Triton's interpreter: chosen before any kernel is imported.
import torch

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"

from bench.measure.environment import clocks, environment  # noqa: E402
from bench.visit import stand_ins  # noqa: E402
from bench.visit.items import Item, Visit, read, write  # noqa: E402
from bench.visit.parts import PARTS, file_of  # noqa: E402


def work(name: str, path: Path, visit: Visit) -> None:
    """Run the part's items that have no result in its file, until `visit.end`."""
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
            if visit.left < item.least and not visit.quick:
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
    content["seconds"] += seconds
    del content["running"]
    write(path, content)
    summary = found.get("failed") or found.get("left out") or found.get("told", "done")
    print(f"  {item.key}: {summary} ({seconds:.0f} s)", flush=True)
    if "failed" in found and visit.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.synchronize()  # raises an error if the device has failed


def main() -> None:
    """Parse arguments and run the part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--end", type=float, required=True)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    device = torch.device("cuda" if ON_GPU else "cpu")
    visit = Visit(device, args.quick, args.end, args.folder / "logs")
    work(args.part, file_of(args.part, args.folder), visit)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # exits without freeing the device, which could hang
