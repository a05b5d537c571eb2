import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
# The targets that most calls run; the report without arguments covers all.
TARGETS = ["90:half", "90:tf32", "90:ieee", "90:bf16x6", "80:half", "80:bf16x6", "89:half"]
SHARED_LIMIT = {80: 166_912, 89: 101_376, 90: 232_448}


@pytest.fixture(scope="module")
def usages():
    return report("--only", *TARGETS)


def report(*arguments):
    return in_a_process_of_its_own("-m", "bench.compile_report", "--json", *arguments)


def in_a_process_of_its_own(*arguments):
    """The JSON that a script prints; its kernels are compiled, not interpreted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# Bytes of stack a thread of training steps that spill: several tiles of classes, minibatches, and
# 32 or 64 units at a time, which modelled takes less than more passes do (docs/decisions.md).
SPILLS = {
    "grid_step_64_32": 450,
    "grid_step_64_64": 1150,
    "grid_step_113_16": 540,
    "grid_step_97_32": 470,
    "grid_batch_64_16": 300,
    "grid_batch_113_16": 350,
}
# Modelled cycles of an iteration of the hot loop on sm_90, a tenth above what they are.
CEILINGS = {
    ("grid_step_64_16", "bf16x6"): 4_500,
    ("grid_step_64_32", "bf16x6"): 6_350,
    ("grid_step_64_64", "bf16x6"): 10_850,
    ("grid_step_113_16", "bf16x6"): 8_350,
    ("dual_forward", "half"): 1_800,
    ("dual_backward", "half"): 1_800,
    ("dual_backward_input", "half"): 1_550,
    ("dual_backward_weight", "half"): 2_500,
    ("mlp_forward", "half"): 910,
    ("mlp_backward", "half"): 4_900,
}
# A tenth above those of gelu, whose g and g′ take most in each of these; other gates take fewer.
GATE_CEILINGS = {
    ("dual_forward", "half"): 1_820,
    ("dual_backward", "half"): 1_130,
    ("dual_backward_input", "half"): 2_700,
    ("dual_backward_weight", "half"): 5_740,
    ("mlp_forward", "half"): 890,
    ("mlp_backward", "half"): 6_000,
}


def test_no_default_variant_spills(usages):
    assert {f"{u['capability']}:{u['kind']}" for u in usages} == set(TARGETS)
    spilled = [usage for usage in usages if usage["stack"] > SPILLS.get(usage["kernel"], 64)]
    assert spilled == []


def test_gates_neither_spill_nor_pass_their_ceilings():
    # The gate that takes most registers, and most instructions.
    usages = report("--only", "90:half", "80:half", "--gates", "gelu")
    assert {u["gate"] for u in usages} == {"gelu"}
    assert {u["kernel"] for u in usages} >= {
        "dual_backward",
        "dual_backward_weight",
        "mlp_backward",
    }
    over = [u for u in usages if u["shared"] > SHARED_LIMIT[u["capability"]]]
    assert [u for u in usages if u["stack"] > 64] + over == []
    assert_below(GATE_CEILINGS, usages)


def assert_below(ceilings, usages):
    """Every hot loop on sm_90 takes at most so many modelled cycles an iteration."""
    cycles = {
        (u["kernel"], u["kind"]): u["loop"]["cycles"]
        for u in reversed(usages)  # the table's tile for many rows comes first
        if u["capability"] == 90 and u["loop"] is not None
    }
    assert cycles.keys() >= ceilings.keys()
    above = {key: cycles[key] for key, most in ceilings.items() if cycles[key] > most}
    assert above == {}


def test_hot_loops_stay_below_their_ceilings(usages):
    assert_below(CEILINGS, usages)


def test_a_training_step_converts_two_parts_at_a_time(usages):
    steps = [u for u in usages if u["kernel"] == "grid_step_64_16" and u["loop"] is not None]
    assert steps
    for usage in steps:
        made = usage["loop"]["instructions"]
        assert made.get("convert", 0) == 0, "a bfloat16 conversion an element: eight cycles each"
        assert made["MUFU"] <= 40, "an exponential takes one instruction"
        assert made["barrier"] <= 60


def test_no_product_waits_for_the_one_before(usages):
    products = [u for u in usages if u["wgmma"]]
    assert {u["kind"] for u in products} >= {"half", "tf32", "bf16x6"}
    assert [u for u in products if u["serialised"]] == []


@pytest.mark.parametrize("capability", ["90", "80"])
def test_the_identity_costs_no_instruction(capability):
    script = Path(__file__).with_name("identity_machine_code.py")
    found = in_a_process_of_its_own(str(script), capability)
    assert len(found) == 11
    for kernel, instructions, equal in found:
        assert instructions > 100, kernel
        assert equal, f"{kernel}: with the identity as gate it is not the kernel without gates"


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
