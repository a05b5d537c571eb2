import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
# What most calls run; without arguments the report covers the rest.
TARGETS = ["90:half", "90:tf32", "90:ieee", "80:half", "89:half"]
SHARED_LIMIT = {80: 166_912, 89: 101_376, 90: 232_448}


@pytest.fixture(scope="module")
def usages(tmp_path_factory):
    """The report in a process of its own: these kernels are compiled, not interpreted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "bench.compile_report", "--json", "--only", *TARGETS]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_default_variant_spills(usages):
    assert {f"{u['capability']}:{u['kind']}" for u in usages} == set(TARGETS)
    spilled = [usage for usage in usages if usage["stack"] > 64]
    assert spilled == []


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
