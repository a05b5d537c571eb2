"""Times every gate on the CPU against the faster of eager PyTorch and torch.compile.

    python -m bench.studies.gates [--gates silu gelu] [--seconds 1.5] [--threads 2] [--cpu-time]

Measures three forms in float32: the layer, the MLP with a packed weight, and a model's MLP with two
weights after `fuse`. Each is timed forward without gradients, and forward and backward into all
inputs. Each gate and form gets a new process; contestants take turns, and the ratio is computed for
each round. Also reports the bytes saved for backward as a share of eager's. On a shared machine,
--cpu-time with --threads 1 excludes the time of other programs. The first run compiles for minutes;
with Inductor's cache a whole run takes under six minutes. Writes bench/results/gates.json and keeps
its entries for gates that --gates does not name.
"""

import argparse
import copy
import json
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from bench.measure.clock import host_seconds, thread_seconds
from bench.measure.environment import RESULTS, write_result
from bench.measure.layer_ways import FUSED, inputs
from bench.measure.turns import Contestants, process_of_its_own, ratios, take_turns
from bench.studies.few_rows import Gated
from bench.suites.bench_layer import saved_bytes
from bilinear import fuse
from bilinear.layer import eager
from bilinear.layer.gates import GATES

SHAPES = [(4096, 128, 64), (4096, 256, 512)]  # M, d_in, d
FORMS = ("layer", "mlp", "two weights")


class Relu2(nn.Module):
    """relu(x)², for which torch has no module."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.square(nn.functional.relu(x))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, "tanh"),
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "relu2": Relu2,
}


def ways(form: str, gate: str, shape: tuple[int, int, int]) -> tuple[dict[str, Any], list[Tensor]]:
    """Ours and eager as functions of the input tensors, and these tensors, x first."""
    if form != "two weights":

        def composed(x: Tensor, weight: Tensor, *w_p: Tensor) -> Tensor:
            return eager.compose(x, weight, None, *w_p, gate=gate)

        return {"ours": partial(FUSED[form], gate=gate), "eager": composed}, inputs(form, shape)
    m, d_in, d = shape
    plain = Gated(d_in, d, MODULES[gate]())
    fused = copy.deepcopy(plain, {id(p): p for p in plain.parameters()})
    fuse(fused, strict=True)
    x = torch.randn(m, d_in, requires_grad=True)
    of_x = {"ours": lambda x, *_: fused(x), "eager": lambda x, *_: plain(x)}
    return of_x, [x, *plain.parameters()]


def contest(
    form: str, gate: str, shape: tuple[int, int, int], seconds: float, threads: int, cpu_time: bool
) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    functions, tensors = ways(form, gate, shape)
    saved = [saved_bytes(functions[way], tensors) for way in ("ours", "eager")]
    functions["compile"] = torch.compile(functions["eager"], fullgraph=True, dynamic=False)
    upstream = torch.randn_like(functions["eager"](*tensors))

    def forward(f: Any) -> object:
        with torch.no_grad():
            return f(*tensors)

    def both(f: Any) -> object:
        return torch.autograd.grad(f(*tensors), tensors, upstream)

    found = []
    for direction, call in (("forward", forward), ("forward and backward", both)):
        runs: Contestants = {way: partial(call, f) for way, f in functions.items()}
        rounds = take_turns(runs, seconds, once=thread_seconds if cpu_time else host_seconds)
        rival = min(("eager", "compile"), key=lambda way: median(rounds[way]))
        low, middle, high = (round(q, 3) for q in ratios(rounds[rival], rounds["ours"]))
        found.append(
            {"form": form, "gate": gate, "shape": shape, "direction": direction}
            | {"rival": rival, "times_faster": middle, "quartiles": [low, high]}
            | {f"{way}_ms": round(1e3 * median(taken), 3) for way, taken in rounds.items()}
            | {"rounds": len(rounds["ours"])}
        )
    found[-1]["saved_of_eagers"] = round(saved[0] / saved[1], 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gates", nargs="+", choices=GATES, default=list(GATES))
    parser.add_argument("--seconds", type=float, default=1.5, help="for each contest")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true")
    given = parser.parse_args()
    path = RESULTS / "gates.json"
    known = json.loads(path.read_text())["contests"] if path.exists() else []
    found = [one for one in known if one["gate"] not in given.gates]
    how = given.seconds, given.threads, given.cpu_time
    for gate in given.gates:
        for form in FORMS:
            with process_of_its_own() as process:
                for shape in SHAPES:
                    for one in process.submit(contest, form, gate, shape, *how).result():
                        print(*one.values(), flush=True)
                        found.append(one | {"threads": given.threads, "cpu_time": given.cpu_time})
    command = "python -m bench.studies.gates"
    write_result("gates", {"command": command, "contests": found})


if __name__ == "__main__":
    main()
