"""Malformed calls of the library: each must raise an error that names the argument within 5 s."""

import random
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from bench.campaign.processes import PATIENCE
from bench.campaign.sweeps import Folders

_JUNK: list[Any] = [None, "x", object(), {}, [], 1j, b"x", float("nan")]
_SIZES: list[Any] = [0, -1, 1.5, "4", None, True, [4], 2**70 * -1]
_NO_TENSORS: list[Any] = [None, "x", 1.0, [1.0], object()]


class Call(NamedTuple):
    """A function, valid arguments, and invalid values of some arguments."""

    function: Callable[..., Any]
    good: Callable[[], dict[str, Any]]
    bad: dict[str, list[Any]]
    # Other words by which an error may name the argument.
    also: tuple[str, ...] = ()


def _layer() -> dict[str, Any]:
    return {"x": torch.randn(3, 4), "weight": torch.randn(10, 4)}


def _mlp() -> dict[str, Any]:
    return {**_layer(), "w_p": torch.randn(2, 5)}


def _wrong_tensors(*shapes: tuple[int, ...]) -> list[Any]:
    found: list[Any] = [*_NO_TENSORS, torch.ones(3, 4, dtype=torch.int64), torch.randn(3, 4).half()]
    return found + [torch.randn(shape) for shape in shapes]


def _weights() -> dict[str, Any]:
    return {"model": (torch.randn(3, 14), torch.randn(3, 14), torch.randn(7, 3))}


_W_L, _W_P = torch.randn(3, 14), torch.randn(7, 3)
_MODELS: list[Any] = [
    *_NO_TENSORS, (_W_L, _W_L), (_W_L, _W_L, _W_P, _W_P), (_W_L, _W_L, torch.randn(7, 4)),
    (_W_L, torch.randn(4, 14), _W_P), (_W_L, _W_L, _W_P.double()), (_W_L, _W_L, "w"), {},
    {"w_l": _W_L}, (_W_L.long(), _W_L.long(), _W_P.long()), torch.nn.Linear(3, 4),
]  # fmt: skip
_OUTPUTS: list[Any] = [7, -8, "x", 1.5, [0, 7], ["x"], object()]


def every_call() -> list[Call]:
    """Return the functions that are called; the library is imported only here."""
    import bilinear
    from bilinear import SweepConfig, functional
    from bilinear.experiment.schedule import Schedule
    from bilinear.reading import exact_circuit, fourier, hosvd, interactions, similarity, spectra

    tuples: list[Any] = [None, 3, "x", [4], (0,), (-1,), (4, 4), ("4",), (2**70,), (1.5,), (True,)]
    config: dict[str, list[Any]] = {
        "p": [*_SIZES, 1, 16_385], "widths": [*tuples, (10**7,)],
        "seeds": [None, 3, "x", (-1,), (4, 4), (2**70,), ("0",)],
        "remainders": [None, (64,), (1, 1)],
        "train_frac": [*_JUNK, 0, 1, -0.5], "steps": _SIZES, "lr": [*_JUNK, 0.1],
        "weight_decay": [*_JUNK, 0.1], "betas": [*_JUNK, (0.9,), (0.9, 1.0), ("a", 0.9)],
        "eps": [*_JUNK, 0, -1, 1e30, 1e-320], "batch_size": [None, -1, 1.5, "full", 10**9, True],
        "init_scale": [*_JUNK, 0, -1, 1e30, 1e-320], "eval_every": _SIZES, "hold": _SIZES,
        "goal": [None, "train", 3, ["full"]], "precision": [None, "bf16", 3],
    }  # fmt: skip
    sweep = {name: values for name, values in config.items() if name not in ("widths", "seeds")}
    sweep |= {"widths": [3, "x", (0,), (4, 4), ("4",)], "seeds": [None, 0, -1, (0, 0), (2**70,)]}
    wrong_x = _wrong_tensors((3, 5), ())
    wrong_weight = _wrong_tensors((9, 4), (10, 5), (10,))
    return [
        Call(bilinear.Bilinear, lambda: {"d_in": 4, "d_out": 3}, {"d_in": _SIZES, "d_out": _SIZES}),
        Call(
            bilinear.BilinearMLP,
            lambda: {"d_in": 4, "d_hidden": 3, "d_out": 2},
            {"d_in": _SIZES, "d_hidden": _SIZES, "d_out": _SIZES, "gate": ["x", 3, None]},
        ),
        Call(
            functional.bilinear,
            _layer,
            {"x": wrong_x, "weight": wrong_weight, "bias": _wrong_tensors((9,))[1:]},
        ),
        Call(
            functional.bilinear_mlp,
            _mlp,
            {"x": wrong_x, "weight": wrong_weight, "w_p": _wrong_tensors((2, 6), (5,))},
        ),
        Call(SweepConfig, dict, config, ("batch size", "train fraction", "beta1", "beta2")),
        Call(
            bilinear.sweep,
            lambda: {"p": 7, "widths": [3], "steps": 5, "out": "unused", "progress": False},
            sweep | {"device": ["tpu", None, 3], "out": ["", "\0", 3]},
            ("batch size", "train fraction", "beta1", "beta2", "results folder"),
        ),
        Call(
            Schedule,
            lambda: {"start": 0.1, "end": 0.1},
            {"start": [*_JUNK, -1, 1e30], "end": [*_JUNK, -1, 1e30], "shape": [None, "x", 3]},
            ("schedule",),
        ),
        Call(
            bilinear.load_results,
            lambda: {"where": "x"},
            {"where": [None, 3, "", "\0", "/nonexistent", "nowhere://x", b"x", "/dev/null"]},
            ("results folder", "/nonexistent", "nowhere://x", "/dev/null"),
        ),
        Call(bilinear.fuse, lambda: {"model": torch.nn.Linear(2, 2)}, {"model": _NO_TENSORS}),
        Call(bilinear.unfuse, lambda: {"model": torch.nn.Linear(2, 2)}, {"model": _NO_TENSORS}),
        Call(
            bilinear.explain, lambda: {"what": (4, 4, 4)},
            {"what": [None, "x", (4,), (4, 0, 4), (4, 4, "x"), 3, (1, 2, 3, 4, 5)]},
            ("m", "d_in", "d", "d_out"),
        ),
        *(
            Call(function, _weights, {"model": _MODELS, "output": _OUTPUTS}, ("w_l", "w_r", "w_p"))
            for function in (
                interactions.interaction_matrices, interactions.cross_block,
                interactions.logit_table, spectra.eigenpairs, spectra.eigenvalues,
            )
        ),
        *(
            Call(function, _weights, {"model": _MODELS}, ("w_l", "w_r", "w_p"))
            for function in (
                fourier.frequencies, fourier.unit_amplitudes, fourier.serving_units,
                hosvd.output_directions, interactions.hidden_table,
            )
        ),
        Call(
            similarity.functional_similarity, lambda: {"models": [_weights()["model"]]},
            {"models": [None, 3, [None], [torch.ones(3)], [(_W_L, _W_L)]]}, ("w_l", "w_r", "w_p"),
        ),
        Call(
            exact_circuit.exact_circuit, lambda: {"p": 7},
            {"p": [0, -1, 1.5, "7", None], "frequency": [0, 7, 1.5, "1", None]},
        ),
    ]  # fmt: skip


def calls(draw: random.Random, folders: Folders, n: int) -> dict[str, Any]:
    """Make n malformed calls in one process; none is made twice before all are made once."""
    path = folders.fresh("calls.txt")

    def work() -> int:
        wrong, slowest = _make_calls(draw, n)
        path.write_text("\n".join([str(slowest), *wrong]), encoding="utf-8")
        return 0

    ended = folders.process(work).end(at_most=300.0)
    if ended.code != 0:
        return {"calls": n, "wrong": [f"the process ended with {ended.code}: {ended.error[-500:]}"]}
    slowest, *wrong = path.read_text(encoding="utf-8").splitlines()
    return {"calls": n, "slowest [s]": round(float(slowest), 2), "wrong": wrong}


def _make_calls(draw: random.Random, n: int) -> tuple[list[str], float]:
    every = [
        (call, name, value)
        for call in every_call()
        for name in call.bad
        for value in call.bad[name]
    ]
    wrong: list[str] = []
    slowest, drawn = 0.0, list[tuple[Call, str, Any]]()
    while len(drawn) < n:
        drawn += draw.sample(every, len(every))
    for call, name, value in drawn[:n]:
        began = time.process_time()
        reason = _reason(call, name, value)
        seconds = time.process_time() - began
        slowest = max(slowest, seconds)
        reason = reason or (f"took {seconds:.1f} s" if seconds > PATIENCE else "")
        if reason:
            given = repr(value).replace("\n", " ")[:80]
            wrong.append(f"{call.function.__name__}({name}={given}): {reason}")
    return wrong, slowest


def _reason(call: Call, name: str, value: Any) -> str:
    """Say why the call is not refused as it should be; empty if it is."""
    try:
        call.function(**(call.good() | {name: value}))
    except (TypeError, ValueError, KeyError) as error:
        message = str(error)
        words = (name, *call.also)
        named = any(re.search(rf"(?<!\w){word}(?!\w)", message) for word in words)
        if "\n" in message or not named:
            return f"{type(error).__name__}: {message[:160]!r} does not name it"
        return ""
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:160]!r}"
    return "is accepted"
