"""Runs a turn of one part's items: `python -m bench.visit.worker PART FOLDER --turn S --end T`.

It is a process of its own, because after an illegal address on a GPU every further CUDA call of the
process fails. The part's file names the item that is running: if the process dies, bench.gpu, which
started it, marks that item as failed.
"""

import argparse
import os
import sys
from pathlib import Path

# Without a GPU, kernels run under Triton's interpreter: chosen before any kernel is imported.
import torch

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"

from bench.visit.items import Visit  # noqa: E402
from bench.visit.parts import PARTS, file_of  # noqa: E402
from bench.visit.turn import work  # noqa: E402


def main() -> None:
    """Parse arguments and run the part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--turn", type=float, required=True, help="seconds in which items start")
    parser.add_argument("--end", type=float, required=True, help="a time.time() at which all end")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    device = torch.device("cuda" if ON_GPU else "cpu")
    visit = Visit(device, args.quick, args.end, args.folder / "logs")
    work(args.part, file_of(args.part, args.folder), visit, args.turn)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # exits without freeing the device, which could hang
