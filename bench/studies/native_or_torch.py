"""When is the compiled layer faster? `python -m bench.studies.native_or_torch [--threads N]`.

Times the compiled layer against torch's matmuls (`layer/matmuls.py`), forward and backward, in
turns in one process. Writes how many times faster it is, by processor, sizes, dtype, recompute and
threads, to bilinear/layer/native_table.json, which `layer/native.py` reads. Other rows are kept.
One thread is timed by its own CPU time, so the machine may be shared; with more threads the machine
must be otherwise idle.

`--processor avx2` holds torch's libraries and the compiled layer to that class of processor's
instructions, to measure for an older class on a newer one.
"""

import argparse
import itertools
import json
import os
import sys
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
# Longer calls take seconds, and their ratio is close to that of the next smaller size. Where the
# processor has no instructions for a dtype, torch multiplies at a tenth of float32's rate.
MOST_FLOP = {torch.float32: 2e10, torch.bfloat16: 1e10, torch.float16: 1e10}
MOST_FLOP_WITHOUT_INSTRUCTIONS = 2e8
NEEDS = {torch.float32: "baseline", torch.bfloat16: "avx512_bf16", torch.float16: "avx512_fp16"}
ROUNDS, SECONDS = 5, 0.1
# What holds oneDNN, MKL and torch's own kernels to a class of processor, set before they load.
HELD_TO = {
    "avx2": ("AVX2", "AVX2", "avx2"),
    "avx512": ("AVX512_CORE", "AVX512", "avx512"),
    "avx512_bf16": ("AVX512_CORE_BF16", "AVX512", "avx512"),
}
_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY")


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


def most_flop(dtype: torch.dtype, processor: str) -> float:
    """The most FLOP of a call that is measured."""
    order = layer_cpu.PROCESSORS.index
    fast = order(processor) >= order(NEEDS[dtype])
    return MOST_FLOP[dtype] if fast else MOST_FLOP_WITHOUT_INSTRUCTIONS


def measure(processor: str) -> list[list[object]]:
    """Rows of the table; see `native.table`."""
    threads, cpu, rows = torch.get_num_threads(), torch.device("cpu"), []
    for dtype, recompute, (d_in, d), m, projects in itertools.product(
        DTYPES, (False, True), WIDTHS, ROWS, (False, True)
    ):
        d_out = d_in if projects else None
        if 12 * m * d * (d_in + (d_out or 0) / 2) > most_flop(dtype, processor):
            continue
        call = Call(m, d_in, d, d_out, dtype, cpu, recompute=recompute)
        name = str(dtype).removeprefix("torch.")
        ratio = round(times_faster(call), 2)
        rows.append([processor, m, d_in, d, d_out or 0, name, recompute, threads, ratio])
        print(*rows[-1], flush=True)
    return rows


def hold_to(processor: str) -> None:
    """Start this program again with torch's libraries held to an older class of processor."""
    variables = dict(zip(_VARIABLES, HELD_TO[processor], strict=True))
    if any(os.environ.get(name) != value for name, value in variables.items()):
        again = [sys.executable, "-m", "bench.studies.native_or_torch", *sys.argv[1:]]
        os.execve(sys.executable, again, os.environ | variables)
    isa = layer_cpu.ISAS.index(processor.partition("_")[0])
    compiled = layer_cpu.forward, layer_cpu.backward
    between = layer_cpu.product_forward, layer_cpu.product_backward
    for function in (*compiled, *between):
        function.__kwdefaults__["isa"] = isa


def main() -> None:
    """Measure for a class of processor and a number of threads, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--processor", choices=layer_cpu.PROCESSORS, default=layer_cpu.processor())
    args = parser.parse_args()
    if args.processor != layer_cpu.processor():
        hold_to(args.processor)
    torch.set_num_threads(args.threads)
    measured = measure(args.processor)
    kept = [row for row in native.table() if (row[0], row[-2]) != (args.processor, args.threads)]
    lines = ",\n".join(
        "  " + json.dumps(row) for row in sorted(map(list, [*kept, *measured]), key=str)
    )
    columns = json.dumps(native.Measured._fields)
    native.TABLE.write_text(f'{{"columns": {columns}, "rows": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
