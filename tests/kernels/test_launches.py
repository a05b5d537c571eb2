"""Which kernels would be compiled on a device, read from launches on meta tensors."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent
# Tests whose bodies launch kernels where there is a GPU.
LAUNCHING = [
    *(HERE / f"test_{name}.py" for name in ("accuracy", "dual", "grid_triton", "mlp", "partials")),
    HERE / "test_gates_device.py",
    HERE / "test_pointwise.py",
    HERE.parent / "training" / "test_gpu.py",
]


def run(*command: str | Path, **environment: str) -> str:
    """The output of a Python process that compiles kernels and interprets none."""
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE)])
    done = subprocess.run(
        [sys.executable, *command],
        cwd=HERE.parents[1],
        env={**inherited, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_tests_launch_on_a_gpu_compiles(tmp_path: Path) -> None:
    """Of each kernel, dtype and p one specialisation, and another few: a new draw each time."""
    seed, report = random.randrange(2**32), tmp_path / "report.json"
    run(
        "-m", "pytest", "-q", "-p", "launches_of_tests", "-p", "no:cacheprovider", *LAUNCHING,
        LAUNCHES_OF_TESTS=f"0.02:{seed}:{report}",
    )  # fmt: skip
    told: dict[str, Any] = json.loads(report.read_text())
    assert told["failed"] == {}, f"seed {seed}"
    kinds = "\n".join(told["kinds"])
    for kernel in ("dual", "dual_input", "dual_weight", "mlp", "mlp_backward", "product"):
        for dtype in ("bf16", "fp16", "fp32", "fp64"):
            assert f"('{kernel}_kernel', ('*{dtype}',), None)" in kinds
    for kernel in ("dual", "mlp", "mlp_backward", "mlp_input", "mlp_weight", "product"):
        for dtype in ("bf16", "fp16", "fp32", "fp64"):
            assert f"('{kernel}_kernel', ('*{dtype}',), 'gated')" in kinds
    for p in (2, 7, 11, 13, 19, 35):
        assert f"('grid_run_kernel', ('*fp64',), {p})" in kinds
    for p in (64, 97, 131):
        assert f"('grid_step_kernel', ('*fp32',), {p})" in kinds
    assert told["compiled"] > 50


def test_varying_rows_compile_a_kernel_at_most_twice() -> None:
    told = json.loads(run(HERE / "specialisations_by_rows.py"))
    assert len(told) == 6
    for how, counts in told.items():
        assert counts.keys() >= {"dual_kernel", "mlp_kernel", "product_kernel", "add_kernel"}, how
        # A tile for few rows and one for many; gradients of few rows are stored without shares.
        # Where M is a stride of x, it divides by 16 or it doesn't; one row has no stride.
        assert max(counts.values()) <= (2 if how.startswith("rows") else 5), (how, counts)
        assert sum(counts.values()) <= (15 if how.startswith("rows") else 30), (how, counts)


def test_a_direct_start_gives_the_driver_what_tritons_own_gives() -> None:
    told = json.loads(run(HERE / "direct_starts.py"))
    assert told["compared"] > 50
