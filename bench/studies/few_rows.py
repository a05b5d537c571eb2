"""Times a fused MLP with separate gate and up weights against the unfused module, from one row up.

    python -m bench.studies.few_rows

Measures CPU time of one thread, with and without gradients; contestants take turns. Reports the
median and quartiles of eager's time over ours. The three contestants share their weights: the fused
module, the unfused one, and a copy of the unfused one, whose ratio shows the measurement noise.
malloc is set to keep freed memory. With malloc's defaults some calls get new pages for the
gradients, and clearing these pages took as long as the work itself. Also times the guard of a fused
call against a plain read of the modules' weights. Writes bench/results/few_rows.json.
"""

import copy
import time
import timeit
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.measure.environment import write_result
from bench.measure.turns import process_of_its_own, ratios
from bilinear import fuse
from bilinear.layer.guard import guard

SIZES = [(1, 256, 688), (4, 256, 688), (16, 256, 688), (64, 256, 688), (1, 1024, 2752)]
TURNS = 121


class Gated(nn.Module):
    """The MLP of Llama-family models."""

    def __init__(self, d_in: int, d: int, act_fn: nn.Module | None = None) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d_in, d, bias=False)
        self.up_proj = nn.Linear(d_in, d, bias=False)
        self.down_proj = nn.Linear(d, d_in, bias=False)
        self.act_fn = nn.SiLU() if act_fn is None else act_fn

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
    torch.set_num_threads(1)
    plain = Gated(d_in, d)
    again, fused = (copy.deepcopy(plain, {id(p): p for p in plain.parameters()}) for _ in range(2))
    fuse(fused, strict=True)
    x = torch.randn(rows, d_in, requires_grad=trains)
    models = {"eager": plain, "ours": fused, "a copy": again}
    runs = {name: step(model, x, trains) for name, model in models.items()}
    calls = max(1, int(2e-3 / seconds(runs["eager"], 20)))
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(TURNS):
        first = turn % len(runs)
        for name in [*runs][first:] + [*runs][:first]:
            taken[name].append(seconds(runs[name], calls))
    found: dict[str, Any] = {"rows": rows, "d_in": d_in, "d": d, "trains": trains}
    for name in ("ours", "a copy"):
        low, middle, high = (round(q, 3) for q in ratios(taken["eager"], taken[name]))
        found[f"eager over {name}"] = {"median": middle, "quartiles": [low, high]}
    return found


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
    with process_of_its_own() as process:
        jobs = [
            process.submit(contest, *size, trains) for size in SIZES for trains in (False, True)
        ]
        found = [job.result() for job in jobs]
        times = process.submit(guard_seconds).result()
    command = "python -m bench.studies.few_rows"
    write_result("few_rows", {"command": command, "seconds": times, "contests": found})
    for one in found:
        print(*one.values())
    print(times)


if __name__ == "__main__":
    main()
