"""When is the compiled layer faster? `python -m bench.studies.native_or_torch [--threads N]`.

Times the compiled layer against torch's matmuls (`layer/matmuls.py`), forward and backward, in
turns in one process. Writes how many times faster it is, by sizes, dtype, recompute and threads, to
bilinear/layer/native_table.json, which `layer/native.py` reads. Rows for other numbers of threads
are kept. One thread is timed by its own CPU time, so the machine may be shared; with more threads
the machine must be otherwise idle.
"""

import argparse
import itertools
import json
from collections.abc import Callable

import torch

from bench.measure.clock import call_seconds, thread_seconds
from bench.measure.turns import take_turns
from bilinear.kernels import layer_cpu
from bilinear.layer import matmuls, native
from bilinear.layer.call import Call, Implementation

ROWS = (64, 1024, 8192)
WIDTHS = (  # d_in, d
    (16, 16), (64, 64), (128, 64), (64, 512), (256, 512), (512, 512), (768, 768), (1024, 1024),
)  # fmt: skip
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Longer calls take seconds, and their ratio is close to that of the next smaller size.
MOST_FLOP = {torch.float32: 2e10, torch.bfloat16: 1e10, torch.float16: 2e8}
ROUNDS, SECONDS = 5, 0.1


def both_ways(call: Call, implementation: Implementation) -> Callable[[], object]:
    """One forward and backward into x and every weight, by an implementation."""
    x, weight = torch.randn(call.m, call.d_in), torch.randn(2 * call.d, call.d_in) / call.d_in**0.5
    w_p = None if call.d_out is None else torch.randn(call.d_out, call.d) / call.d**0.5
    x, weight = x.to(call.dtype), weight.to(call.dtype)
    w_p = None if w_p is None else w_p.to(call.dtype)
    dout = torch.randn(call.m, call.d_out or call.d).to(call.dtype)
    needs = (True, True, False, w_p is not None, False)
    saves = implementation.saves_preact(call)

    def run() -> object:
        out, preact = implementation.forward(call, x, weight, None, w_p, None, save_preact=saves)
        return out, implementation.backward(call, dout, x, weight, None, w_p, preact, needs=needs)

    return run


def times_faster(call: Call) -> float:
    """Torch's time over the compiled layer's, each in its fastest round.

    Other programs on the machine slow rounds down, most of all torch's with their many barriers.
    """
    once = thread_seconds if torch.get_num_threads() == 1 else call_seconds
    ways = {"ours": both_ways(call, native), "torch": both_ways(call, matmuls)}
    seconds = take_turns(ways, SECONDS, ROUNDS, once)
    return min(seconds["torch"]) / min(seconds["ours"])


def measure() -> list[list[object]]:
    """Rows of the table; see `native.table`."""
    threads, cpu, rows = torch.get_num_threads(), torch.device("cpu"), []
    for dtype, recompute, (d_in, d), m, projects in itertools.product(
        DTYPES, (False, True), WIDTHS, ROWS, (False, True)
    ):
        d_out = d_in if projects else None
        if 12 * m * d * (d_in + (d_out or 0) / 2) > MOST_FLOP[dtype]:
            continue
        call = Call(m, d_in, d, d_out, dtype, cpu, recompute=recompute)
        name = str(dtype).removeprefix("torch.")
        ratio = round(times_faster(call), 2)
        rows.append([m, d_in, d, d_out or 0, name, recompute, threads, ratio])
        print(*rows[-1], flush=True)
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure for a number of threads and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args(arguments).threads)
    kept = json.loads(native.TABLE.read_text())["rows"] if native.TABLE.exists() else []
    rows = [row for row in kept if row[6] != torch.get_num_threads()] + measure()
    lines = ",\n".join("  " + json.dumps(row) for row in sorted(rows, key=str))
    columns = ["m", "d_in", "d", "d_out", "dtype", "recompute", "threads", "times faster"]
    content = f'{{"isa": "{layer_cpu.best_isa()}", "columns": {json.dumps(columns)}, "rows": [\n'
    native.TABLE.write_text(content + lines + "\n]}\n")


if __name__ == "__main__":
    main()
