"""A pytest plugin: walks tests as on a GPU, on meta tensors, and compiles what they would launch.

    python -m pytest -p launches_of_tests FILES, with LAUNCHES_OF_TESTS = SHARE:SEED:REPORT

A test walks as far as it can without a value: its launches are noted, not run, and what it asserts
of their results is passed over. Then a SHARE of the distinct specialisations, drawn by SEED but at
least one of each kernel and dtype, with each p, with and without a gate, is compiled for sm_90;
REPORT, JSON, says how it went.
"""

import json
import multiprocessing
import os
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

# Triton interprets no kernel here, and no test is skipped for want of a GPU.
torch.cuda.is_available = lambda: True

from bench.measure.ahead_of_time import (  # noqa: E402
    Specialisation,
    compile_launch,
    specialisation,
)
from bilinear.kernels import launch  # noqa: E402
from bilinear.training.gpu import GpuBackend  # noqa: E402

META = torch.device("meta")
_found: dict[Specialisation, launch.Launch] = {}


def _note(start: launch.Launch) -> None:
    _found.setdefault(specialisation(start), start)


def _nothing(*given: object, **more: object) -> None:
    """Replaces an assertion on values."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        module = item.module
        if hasattr(module, "DEVICE"):
            module.DEVICE = META
        for name in ("assert_close", "absolute_error", "check"):
            if hasattr(module, name):
                setattr(module, name, _nothing)
        if hasattr(module, "choose"):  # a backend for "cuda"
            module.choose = lambda *_, **__: GpuBackend(META, "walked", memory=2**30)
        if "device" in getattr(item, "callspec", item).__dict__.get("params", {}):
            item.callspec.params["device"] = META
    import kernel_checks

    kernel_checks.DEVICE = "meta"


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    try:
        with launch.recording(_note):
            return (yield)
    except Exception:  # the test needed a value, which meta tensors do not have
        return True


def _kind(seen: Specialisation) -> tuple[object, ...]:
    """Kernel, dtypes, and p or whether there is a gate."""
    floating = {of for _, of in seen.types if "fp" in of or "bf" in of}
    constants = dict(seen.constants)
    gated = constants.get("GATE", "identity") != "identity"
    return seen.kernel, tuple(sorted(floating)), "gated" if gated else constants.get("p")


def _compiled(index: int) -> str:
    """The compiler's error, or an empty string."""
    try:
        compile_launch(list(_found.values())[index], 90)
    except Exception as error:  # compilers raise many kinds
        return f"{type(error).__name__}: {error}"[:500]
    return ""


def pytest_sessionfinish() -> None:
    share, seed, report = os.environ["LAUNCHES_OF_TESTS"].split(":", 2)
    order = list(range(len(_found)))
    random.Random(seed).shuffle(order)
    kinds = [_kind(seen) for seen in _found]
    one_of_each = list({kinds[i]: i for i in order}.values())
    rest = [i for i in order if i not in one_of_each]
    chosen = one_of_each + rest[: round(float(share) * len(rest))]
    torch.set_num_threads(1)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        said = list(pool.map(_compiled, chosen))
    told = {
        "distinct": len(_found),
        "kinds": sorted({str(kind) for kind in kinds}),
        "compiled": len(chosen),
        "failed": {str(list(_found)[i]): why for i, why in zip(chosen, said, strict=True) if why},
    }
    Path(report).write_text(json.dumps(told, indent=1))
