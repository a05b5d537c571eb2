"""Every kernel on small shapes: compared with float64, and run under compute-sanitizer.

    python -m bench.visit.smoke [--match PATTERN]

The sanitizer's racecheck finds races between threads of one program, which Triton's interpreter
cannot find. Under the sanitizer each tensor is an allocation of the driver's
(PYTORCH_NO_CUDA_MEMORY_CACHING), so an access past a tensor's end is one past an allocation's end.
"""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.visit.commands import Done, run
from bench.visit.items import Item, Visit
from bilinear.layer.gates import GATES, product, product_backward

TOOLS = ("memcheck", "racecheck", "synccheck")
# The most seconds of each item. About 110 cubins are compiled, 0.4 to 2 s each, by one process per
# group, all at once; then the three tools load the cubins, also at once.
_COMPARED, _SANITIZED = 45.0, 75.0
# Odd sizes, so that every mask is needed, and more than one block of rows.
_M, _D_IN, _D, _D_OUT = 150, 37, 24, 19
# Largest relative errors: of a kernel of the layer by dtype, and of training's weights.
_BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
_TRAINED = 1e-4

Pairs = list[tuple[Tensor, Tensor]]


def items(visit: Visit) -> list[Item]:
    """Return two items; the first finds most faults and compiles what the sanitizer runs."""
    return [
        Item("against float64", _compared, least=10, most=_COMPARED),
        Item("under compute-sanitizer", _under_sanitizer, least=20, most=_SANITIZED),
    ]


def groups() -> list[str]:
    """Patterns for names of cases, each case matched by one; a process per pattern compiles it."""
    trainings = ("p=7 ", "p=(67|11) ", "p=64 ")
    return [
        "float32 identity", "bfloat16 identity", *(f" {gate}$" for gate in list(GATES)[1:]),
        *(f"training {p}" for p in trainings),
    ]  # fmt: skip


def _compared(visit: Visit) -> dict[str, Any]:
    def run_group(match: str) -> tuple[Done, list[dict[str, Any]]]:
        log = re.sub(r"\W+", "-", match)
        return _cases_of(visit, [], match, f"float64-{log}", _COMPARED)

    wanted = [""] if visit.quick else groups()
    with ThreadPoolExecutor(len(wanted)) as pool:
        done = list(pool.map(run_group, wanted))
    every = [case for _, cases in done for case in cases]
    wrong = {case["kernel"]: case["failed"] for case in every if "failed" in case}
    ended = {match: d.exit for match, (d, _) in zip(wanted, done, strict=True) if d.exit != 0}
    right = {case["kernel"]: case["relative error"] for case in every if "failed" not in case}
    found: dict[str, Any] = {"relative errors": right, "told": f"{len(right)} cases are right"}
    if wrong or ended:
        output = [d.output[-2000:] for d, _ in done if d.exit != 0]
        found |= {"wrong": wrong, "exits": ended, "output": output}
        found["failed"] = f"{sorted(wrong)} of {len(every)}, exits {ended}"
    return found


def _under_sanitizer(visit: Visit) -> dict[str, Any]:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None and not visit.quick:
        return {"left out": "compute-sanitizer is not on the path"}

    def under(tool: str) -> dict[str, Any]:
        prefix = [sanitizer, "--tool", tool, "--error-exitcode", "86"] if sanitizer else []
        match = "pointwise" if visit.quick else ""
        done, cases = _cases_of(
            visit, prefix, match, tool, _SANITIZED, PYTORCH_NO_CUDA_MEMORY_CACHING="1"
        )
        reports = [line for line in done.output.splitlines() if line.startswith("=========")]
        return done.summary() | {"cases": cases, "reports": reports[:60]}

    with ThreadPoolExecutor(len(TOOLS)) as pool:
        found: dict[str, Any] = dict(zip(TOOLS, pool.map(under, TOOLS), strict=True))
    ended = {tool: (found[tool]["exit"], len(found[tool]["cases"])) for tool in TOOLS}
    summary = ", ".join(f"{tool}: exit {code}, {n} cases" for tool, (code, n) in ended.items())
    failed = any(code != 0 for code, _ in ended.values())
    return found | {"told": summary} | ({"failed": summary} if failed else {})


def _cases_of(
    visit: Visit, prefix: list[str], match: str, log: str, most: float, **environment: str
) -> tuple[Done, list[dict[str, Any]]]:
    """Run the cases that match in a process of their own; returns the JSON line of each."""
    command = [*prefix, sys.executable, "-m", "bench.visit.smoke", "--match", match]
    done = run(command, visit.at_most(most), visit.logs / f"smoke-{log}.log", **environment)
    lines = done.output.splitlines()
    return done, [json.loads(line) for line in lines if line.startswith('{"kernel"')]


def check(case: Callable[[], tuple[Pairs, float]]) -> float:
    """Run a case and return the largest relative error of its tensors.

    On a device it runs twice: Triton starts a kernel the first time, the library itself the second
    time (`kernels/launch.py`).

    Raises:
        ValueError: an error is above the case's bound.
    """
    pairs, bound = case()
    if torch.cuda.is_available():
        pairs += case()[0]
    errors = [((got.double().cpu() - want).norm() / want.norm()).item() for got, want in pairs]
    worst = max(errors)
    if not all(error <= bound for error in errors):
        raise ValueError(f"errors {errors}: expected at most {bound}")
    return worst


def cases(device: torch.device) -> dict[str, Callable[[], tuple[Pairs, float]]]:
    """Functions by name that run a kernel; each returns pairs of (result, float64) and a bound."""
    found: dict[str, Callable[[], tuple[Pairs, float]]] = {}
    # Triton 3.6's interpreter computes a wrong bfloat16 product.
    dtypes = [torch.float32] + ([torch.bfloat16] if device.type == "cuda" else [])
    kinds = [(dtype, "identity") for dtype in dtypes]
    some = list(GATES)[1:] if device.type == "cuda" else ["gelu_tanh"]
    kinds += [(dtypes[-1], gate) for gate in some]
    for dtype, gate in kinds:
        for name in ("dual", "mlp one pass", "mlp by gradient", "pointwise"):
            label = f"{name} {str(dtype).removeprefix('torch.')} {gate}"
            found[label] = partial(_layer_case, name, dtype, device, gate)
    found["partial sums float32 identity"] = partial(
        _layer_case, "partial sums", torch.float32, device, "identity"
    )
    for p, d, batch in ((7, 5, 0), (7, 20, 0), (67, 4, 0), (11, 4, 20)):
        label = f"training p={p} d={d}" + (f" batch={batch}" if batch else "")
        found[label] = partial(_training, p, d, batch, device)
    # As the sweep trains. The larger models take too long under the interpreter.
    for p, d in ((7, 5), *(((64, 16), (64, 20), (64, 64)) if device.type == "cuda" else ())):
        label = f"training p={p} d={d}, launches a step"
        found[label] = partial(_training, p, d, 0, device, launches=True)
    return found


def _layer_case(
    name: str, dtype: torch.dtype, device: torch.device, gate: str
) -> tuple[Pairs, float]:
    from bilinear.kernels import dual, mlp, partials, pointwise
    from bilinear.kernels.tiles import Tile

    def normal(*size: int) -> tuple[Tensor, Tensor]:
        drawn = torch.randn(size).to(dtype)
        return drawn.to(device), drawn.double()

    (x, x64), (w, w64), (b, b64) = normal(_M, _D_IN), normal(2 * _D, _D_IN), normal(2 * _D)
    (w_p, w_p64), (dout, dout64), (dh, dh64) = (
        normal(_D_OUT, _D),
        normal(_M, _D_OUT),
        normal(_M, _D),
    )
    preact64 = x64 @ w64.T + b64
    left, right = preact64.chunk(2, 1)
    how: dict[str, Any] = {"precision": "ieee", "gate": gate}

    def gradients(upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        d_preact = product_backward(upstream, left, right, gate)
        return d_preact, d_preact @ w64, d_preact.T @ x64, d_preact.sum(0)

    if name == "dual":
        h, preact = dual.dual_forward(x, w, b, save_preact=True, **how)
        d_preact, again = dual.dual_backward(dh, x, w, b, with_h=True, **how)
        saved = preact64.to(dtype).to(device)
        dx = dual.dual_backward_input(dh, saved, w, **how)
        dw, db = dual.dual_backward_weight(dh, saved, x, bias=True, **how)
        made = [h, preact, d_preact, again, dx, dw, db]
        want_d, want_x, want_w, want_b = gradients(dh64)
        h64 = product(left, right, gate)
        want = [h64, preact64, want_d, h64, want_x, want_w, want_b]
    elif name.startswith("mlp"):
        out = mlp.mlp_forward(x, w, b, w_p, None, **how)
        whole = Tile(block_m=32, block_d=32, block_n=32, block_k=64, num_warps=4, num_stages=1)
        tile = whole if name == "mlp one pass" else Tile(block_m=0, num_warps=4, num_stages=1)
        grads = mlp.mlp_backward(dout, x, w, b, w_p, config={"mlp_backward": tile}, **how)
        _, want_x, want_w, want_b = gradients(dout64 @ w_p64)
        made = [out, *(grads[key] for key in ("x", "weight", "bias", "w_p"))]
        h64 = product(left, right, gate)
        want = [h64 @ w_p64.T, want_x, want_w, want_b, dout64.T @ h64]
    elif name == "pointwise":
        saved, saved64 = normal(_M, 2 * _D)
        left, right = saved64.chunk(2, 1)
        made = [
            pointwise.product_forward(saved, gate),
            *pointwise.product_backward(dh, saved, gate, with_h=True),
        ]
        h64 = product(left, right, gate)
        want = [h64, product_backward(dh64, left, right, gate), h64]
    else:
        parts = torch.randn(70, 5, 13, device=device)
        made, want = [partials.add_shares(parts, torch.float32)], [parts.double().cpu().sum(0)]
    return list(zip(made, want, strict=True)), _BOUNDS[dtype]


def _training(
    p: int, d: int, batch: int, device: torch.device, *, launches: bool = False
) -> tuple[Pairs, float]:
    from bilinear.experiment.task import split_pairs
    from bilinear.kernels.grid_torch import TorchGridModel
    from bilinear.kernels.grid_triton import Recipe, TritonGrid

    steps = 3 if p < 32 else 1
    split = split_pairs(p, 0.75, 0)
    lr = torch.full((steps,), 0.02, dtype=torch.float64)
    how = Recipe(
        p=p, n_train=split.n_train, lr=lr, weight_decay=lr, betas=(0.9, 0.97), eps=1e-8,
        eval_every=2, hold=10**6, goal_is_val=False, batch=batch,
    )  # fmt: skip
    start = [torch.randn(size) / 3 for size in ((d, 2 * p), (d, 2 * p), (p, d))]
    grid = TritonGrid(
        how, [(start[0], start[1], start[2])], [split.pairs], [0], [7], device,
        chunks=4 if launches else 1,
    )  # fmt: skip
    models = torch.zeros(1, dtype=torch.int32, device=device)
    if launches:
        for _ in range(steps + 1):
            grid.step(models)
    else:
        grid.run(models, steps)
    oracle = TorchGridModel(
        *(each.double() for each in start), split.pairs, how.n_train,
        betas=how.betas, eps=how.eps, batch=batch, shuffle_key=7,
    )  # fmt: skip
    oracle.steps(how.lr, how.weight_decay)
    w_l, w_r, w_p = (each[0] for each in grid.weights([0]))
    made = (w_l[:d], w_r[:d], w_p[:, :d])
    return list(zip(made, oracle.weights(), strict=True)), _TRAINED


def main() -> int:
    """Run the cases that match and print a JSON line after each; returns how many were wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--match", default="", help="a regular expression")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wrong = 0
    for name, case in cases(device).items():
        if not re.search(args.match, name):
            continue
        try:
            result = {"kernel": name, "relative error": check(case)}
        except Exception as error:
            wrong += 1
            result = {"kernel": name, "failed": f"{type(error).__name__}: {error}"[:600]}
        print(json.dumps(result), flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
