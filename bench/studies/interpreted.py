"""Does the sweep's GPU kernel reproduce the reference's learning curve?

    TRITON_INTERPRET=1 python -m bench.studies.interpreted [--steps 200] [--sizes 7,8 64,16]

Trains models for 200 steps of the default recipe twice: by `kernels/grid_device.py` under Triton's
interpreter, with two launches a step as on a GPU, and in float64 by torch's operations. Writes the
largest relative difference of the training loss, evaluated every ten steps. This module emulates
the GPU instructions that the interpreter lacks. The bfloat16 parts become float32 numbers of 8
significant bits, whose products are summed in float32. `ex2.approx.ftz` becomes 2ˣ with a random
relative error up to the instruction's bound. With `ieee` the kernel multiplies in float32.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["TRITON_INTERPRET"] = "1"  # before anything imports a kernel

import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import TensorHandle

from bench.measure.environment import write_result
from bench.studies import precision
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.record import Job
from bilinear.kernels import grid_device
from bilinear.kernels.grid_triton import chunks_of
from bilinear.training.gpu import make_grid, recipe_of

CPU = torch.device("cpu")
_random = np.random.default_rng(0)
_PARTS = {"bf16x6": 3, "bf16x3": 2}
_REDUCTIONS = ("sum_and_most", "two_sums")


def _like(x: tl.tensor, data: np.ndarray) -> tl.tensor:
    return tl.tensor(TensorHandle(data, tl.float32), x.type)


def _parts(x: tl.tensor, PRECISION: Any) -> tuple[tl.tensor, ...]:
    """Replaces `split_products.parts`."""
    n = _PARTS.get(getattr(PRECISION, "value", PRECISION), 0)
    found = precision._parts(torch.from_numpy(np.ascontiguousarray(x.handle.data)), n)
    parts = [_like(x, part.numpy()) for part in found] or [x]
    return tuple(parts[min(i, len(parts) - 1)] for i in range(3))


def _exp2(x: tl.tensor, PRECISION: Any) -> tl.tensor:
    """Replaces `split_products.exp2`."""
    e = np.exp2(x.handle.data.astype(np.float64))
    e = (e * (1 + precision._EXP2_ERROR * _random.uniform(-1, 1, e.shape))).astype(np.float32)
    return _like(x, np.where(e < precision._LEAST, np.float32(0), e))


def _exactly(reduction: Any) -> Any:
    """Call a reduction of two tensors in its "ieee" form, which the interpreter supports."""
    return lambda x, y, axis, PRECISION: reduction(x, y, axis, "ieee")


def losses(config: SweepConfig, job: Job, products: str) -> list[float]:
    """Training losses of the kernel, every `precision.EVERY` steps."""
    grid = make_grid(config, [job], CPU, chunks_of(recipe_of(config)))
    models = torch.zeros(1, dtype=torch.int32)
    grid._precision = products
    stand_ins = {} if products == "ieee" else {"parts": _parts, "exp2": _exp2}
    stand_ins |= {name: _exactly(getattr(grid_device, name)) for name in _REDUCTIONS}
    with mock.patch.multiple(grid_device, **stand_ins):
        for _ in range(precision.STEPS + 1):  # each step writes the loss of the step before it
            grid.step(models)
    found = grid.history[0, : precision.STEPS // precision.EVERY, 0]
    return [float(loss) for loss in found]


def main() -> None:
    """Train and compare; rewrite the file after every run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["7,8", "64,16", "59,12"])
    parser.add_argument("--steps", type=int, default=precision.STEPS)
    parser.add_argument("--name", default="interpreted", help="name of the file in bench/results")
    args = parser.parse_args()
    precision.STEPS = args.steps
    rows, path = [], Path()
    for size in args.sizes:
        p, d = map(int, size.split(","))
        config, job = SweepConfig(p=p, widths=(d,), remainders=()), Job(d, 0)
        exact = precision.losses(precision._in_float64(config, job), config)
        for products in ("ieee", *_PARTS):
            start = time.monotonic()
            found = losses(config, job, products)
            worst = max(abs(x - y) / y for x, y in zip(found, exact, strict=True))
            row = {"p": p, "d_hidden": d, "products": products, "largest difference": worst}
            rows.append(row | {"losses": found, "seconds": time.monotonic() - start})
            print(f"p={p} d={d:<3} {products:<8} {worst:.1e}", flush=True)
            path = write_result(args.name, {"steps": args.steps, "rows": rows})
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
