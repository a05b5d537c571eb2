"""A fused MLP of two weights beside the same module unfused, from one row up: eager over ours.

    python -m bench.studies.few_rows [--out bench/results/few_rows.json]

CPU time of one thread, calls in turns, medians and quartiles of the ratio; with and without
gradients. And what the guard of a fused call takes, beside reading the weights as modules do.
"""

import argparse
import copy
import json
import statistics
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.measure.environment import environment
from bilinear import fuse
from bilinear.layer.guard import guard

SIZES = [(1, 256, 688), (4, 256, 688), (16, 256, 688), (64, 256, 688), (1, 1024, 2752)]
TURNS = 41


class Gated(nn.Module):
    """The MLP of Llama-family models."""

    def __init__(self, d_in: int, d: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d_in, d, bias=False)
        self.up_proj = nn.Linear(d_in, d, bias=False)
        self.down_proj, self.act_fn = nn.Linear(d, d_in, bias=False), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def step(model: nn.Module, x: Tensor, trains: bool) -> Callable[[], Any]:
    parameters = [x, *model.parameters()]

    def forward() -> None:
        with torch.no_grad():
            model(x)

    def both() -> None:
        torch.autograd.grad(model(x).sum(), parameters)

    return both if trains else forward


def seconds(run: Callable[[], Any], calls: int) -> float:
    return timeit.timeit(run, number=calls, timer=time.thread_time) / calls


def contest(rows: int, d_in: int, d: int, trains: bool) -> dict[str, Any]:
    plain = Gated(d_in, d)
    fused = copy.deepcopy(plain)
    fuse(fused, strict=True)
    x = torch.randn(rows, d_in, requires_grad=trains)
    theirs, ours = step(plain, x, trains), step(fused, x, trains)
    calls = max(1, int(2e-3 / seconds(theirs, 3)))
    seconds(ours, 3)
    pairs = [(seconds(theirs, calls), seconds(ours, calls)) for _ in range(TURNS)]
    low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    size = {"rows": rows, "d_in": d_in, "d": d, "trains": trains}
    return {**size, "eager_over_ours": middle, "quartiles": [low, high]}


def guard_seconds() -> dict[str, float]:
    model = Gated(8, 12)
    fuse(model, strict=True)
    held, loops = guard(model.proof), range(5000)
    parts = model.gate_proj, model.up_proj, model.down_proj

    def guarded() -> None:
        for _ in loops:
            held(model)

    def read() -> None:
        for _ in loops:
            for part in parts:
                part.weight, part.bias  # noqa: B018

    def best(run: Callable[[], Any]) -> float:
        return min(timeit.repeat(run, number=1, repeat=30, timer=time.thread_time)) / len(loops)

    return {"guard": best(guarded), "reading_weights_as_modules_do": best(read)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench/results/few_rows.json"))
    out = parser.parse_args().out
    torch.set_num_threads(1)
    found = [contest(*size, trains) for size in SIZES for trains in (False, True)]
    result = {"command": "python -m bench.studies.few_rows", "environment": environment()}
    out.write_text(json.dumps({**result, "seconds": guard_seconds(), "contests": found}, indent=1))
    for one in found:
        print(one)
    print(guard_seconds())


if __name__ == "__main__":
    main()
