"""Times the Python overhead of a CUDA call of the layer against eager's, without a GPU.

    TRITON_INTERPRET=1 python -m bench.studies.host_path [--out bench/results/host_path.json]

Under TRITON_INTERPRET=1 the library handles small float32 CPU tensors as it handles CUDA tensors;
this study skips the library's kernels themselves. Torch's operations do run, in eager and between
our kernels, so both figures include their arithmetic on two rows. Neither figure includes the
driver's launch time or the time that a CUDA operation spends on its device and allocator. Ours also
excludes Triton's Python work at each launch, which `--launch` times separately with a driver that
does nothing. What skipped kernels would have written is uninitialised memory, so subnormal numbers
are flushed to zero: products of them take many times as long.

Measures CPU time of one thread; contestants take turns; reports medians and quartiles.
`python_calls` counts calls of Python functions, which does not depend on the machine's speed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.measure import no_driver
from bench.measure.environment import environment
from bilinear.functional import bilinear, bilinear_mlp
from bilinear.layer.select import choose
from bilinear.layer.triton_kernels import detail

Run = Callable[[], Any]
ROWS, TURNS = 2, 41
# d_in, d, d_out. Two layers: one kernel in each direction, or a matmul of torch's and a kernel.
# Then the same two for the MLP.
SIZES = [(16, 16, None), (160, 16, None), (16, 16, 16), (16, 300, 16)]


def eager(x: Tensor, weight: Tensor, bias: Tensor, w_p: Tensor | None, b_p: Tensor | None) -> Any:
    """The layer or MLP in plain PyTorch."""
    left, right = F.linear(x, weight, bias).chunk(2, -1)
    h = left * right
    return h if w_p is None else F.linear(h, w_p, b_p)


def ours(x: Tensor, weight: Tensor, bias: Tensor, w_p: Tensor | None, b_p: Tensor | None) -> Any:
    """The layer or MLP of this library."""
    return bilinear(x, weight, bias) if w_p is None else bilinear_mlp(x, weight, w_p, bias, b_p)


def ways(size: tuple[int, int, int | None]) -> tuple[list[str], dict[str, tuple[Run, Run]]]:
    """Names of the forward and backward kernels; the eager and our call for each direction."""
    d_in, d, d_out = size
    shapes = [(ROWS, d_in), (2 * d, d_in), (2 * d,), (d_out, d), (d_out,)]
    given = [torch.randn(one, requires_grad=True) if None not in one else None for one in shapes]
    dout, leaves = torch.randn(ROWS, d_out or d), [one for one in given if one is not None]
    chosen = choose(*given, False, "identity")  # type: ignore[arg-type]
    assert chosen is not None
    kernels = [detail(chosen[0], direction).kernel for direction in ("forward", "backward")]

    def inference(layer: Callable[..., Any]) -> Run:
        def run() -> None:
            with torch.no_grad():
                layer(*given)

        return run

    def forward(layer: Callable[..., Any]) -> Run:
        return lambda: layer(*given)

    def both(layer: Callable[..., Any]) -> Run:
        return lambda: torch.autograd.grad(layer(*given), leaves, dout)

    kinds = {"inference": inference, "forward": forward, "forward and backward": both}
    return kernels, {name: (make(eager), make(ours)) for name, make in kinds.items()}


def python_calls(run: Run) -> int:
    """Number of Python functions that one call enters on this thread."""
    count = 0

    def noted(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    run()
    run()
    with torch.autograd.set_multithreading_enabled(False):
        sys.setprofile(noted)
        try:
            run()
        finally:
            sys.setprofile(None)
    return count - 1  # without `run` itself


def microseconds(run: Run, calls: int) -> float:
    """CPU time of one call; the calling thread also runs the backward pass."""
    with torch.autograd.set_multithreading_enabled(False):
        return 1e6 * timeit.timeit(run, number=calls, timer=time.thread_time) / calls


def contest(theirs: Run, mine: Run) -> dict[str, Any]:
    """Time eager and ours in turns; times, Python calls and the ratio."""
    for run in (theirs, mine):
        microseconds(run, 200)
    pairs = [(microseconds(theirs, 100), microseconds(mine, 100)) for _ in range(TURNS)]
    found: dict[str, Any] = {}
    for i, (name, run) in enumerate((("eager", theirs), ("ours", mine))):
        low, middle, high = statistics.quantiles([pair[i] for pair in pairs], n=4)
        found[name] = {"us": middle, "quartiles": [low, high], "python_calls": python_calls(run)}
    found["eager_over_ours"] = statistics.median(a / b for a, b in pairs)
    return found


def launch_microseconds() -> dict[str, float]:
    """Time that `kernels/launch.py` and Triton take to launch one kernel, uninterpreted."""
    from bilinear.kernels import dual

    no_driver.install()
    x, weight = torch.randn(64, 32), torch.randn(32, 32)

    def run() -> None:
        dual.dual_forward(x, weight, None, precision="ieee")

    def best() -> float:
        return min(microseconds(run, 300) for _ in range(TURNS))

    run()
    launched = best()
    leave_out_launches()
    return {"launched": launched, "not launched": best()}


def leave_out_launches() -> None:
    """Make every start of a kernel of the layer do nothing at all."""
    from bilinear.kernels import dual, mlp, partials, pointwise

    for module in (dual, mlp, partials, pointwise):
        module.launch = lambda *_: None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench/results/host_path.json"))
    parser.add_argument("--launch", action="store_true", help="time only the launch of a kernel")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if args.launch:
        print(json.dumps(launch_microseconds()))
        return
    found = []
    leave_out_launches()
    for size in SIZES:
        kernels, runs = ways(size)
        for direction, pair in runs.items():
            how = {"d_in, d, d_out": size, "kernels": kernels, "direction": direction}
            found.append(how | contest(*pair))
            print(found[-1], flush=True)
    alone = [sys.executable, "-m", "bench.studies.host_path", "--launch"]
    printed = subprocess.check_output(alone, env=os.environ | {"TRITON_INTERPRET": "0"})
    result: dict[str, Any] = {
        "command": "TRITON_INTERPRET=1 python -m bench.studies.host_path",
        "environment": environment(), "rows": ROWS, "contests": found,
        "launch, us": json.loads(printed),
    }  # fmt: skip
    print(result["launch, us"])
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
