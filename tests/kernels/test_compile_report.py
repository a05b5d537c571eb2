import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
# What most calls run; without arguments the report covers the rest.
TARGETS = ["90:half", "90:tf32", "90:ieee", "90:bf16x6", "80:half", "80:bf16x6", "89:half"]
SHARED_LIMIT = {80: 166_912, 89: 101_376, 90: 232_448}


@pytest.fixture(scope="module")
def usages():
    return report("--only", *TARGETS)


def report(*arguments):
    """The report in a process of its own: these kernels are compiled, not interpreted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "bench.compile_report", "--json", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_default_variant_spills(usages):
    assert {f"{u['capability']}:{u['kind']}" for u in usages} == set(TARGETS)
    spilled = [usage for usage in usages if usage["stack"] > (64 if not known(usage) else 600)]
    assert spilled == []


def test_gates_spill_nowhere_that_calls_are_sent():
    # The gate that takes most registers.
    usages = report("--only", "90:half", "--gates", "gelu")
    assert {u["gate"] for u in usages} == {"gelu"}
    assert len(usages) > 5
    assert [u for u in usages if u["stack"] > 64 or u["shared"] > SHARED_LIMIT[90]] == []


def known(usage):
    """Variants of a training step that spill, beside the default recipe at p up to 64.

    Two tiles of classes, or minibatches, take more registers than there are; docs/decisions.md.
    """
    if not is_grid(usage):
        return False
    _, shape, p, _ = usage["kernel"].split("_")
    return shape != "run" or int(p) > 64


def is_grid(usage):
    return usage["kernel"].startswith("grid")


def test_training_uses_wgmma_on_hopper(usages):
    steps = [
        usage
        for usage in usages
        if is_grid(usage) and usage["capability"] == 90 and "BA" in usage["tile"]
    ]
    assert {usage["kind"] for usage in steps} >= {"tf32", "bf16x6"}
    assert [usage for usage in steps if not usage["wgmma"]] == []


def test_every_default_variant_fits_shared_memory(usages):
    # Only ahead-of-time compilation lets a variant through that no device could launch.
    over = [usage for usage in usages if usage["shared"] > SHARED_LIMIT[usage["capability"]]]
    assert over == []


def test_consumer_devices_share_the_tiles_of_sm_80(usages):
    shared = {u["kernel"]: u["shared"] for u in usages if u["capability"] == 80}
    assert shared
    over = {kernel: used for kernel, used in shared.items() if used > SHARED_LIMIT[89]}
    assert over == {}


def test_hopper_uses_wgmma_for_16_bit(usages):
    without = [
        usage["kernel"]
        for usage in usages
        if usage["capability"] == 90
        and usage["kind"] == "half"
        and usage["kernel"] != "pointwise"
        and not usage["wgmma"]
    ]
    assert without == []
