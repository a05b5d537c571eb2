import json
import math

import pytest
import torch

from bilinear.kernels import dispatch, tune
from bilinear.kernels.dispatch import choose
from bilinear.kernels.gates_device import GATES
from bilinear.kernels.tiles import Tile, cover

HOPPER = (9, 0)


def chosen(op, m=4096, d_in=128, d=64, d_out=None, dtype=torch.bfloat16, saved=False):
    return choose(op, m, d_in, d, d_out, dtype, HOPPER, "ieee", saved)


def test_paths_follow_the_sizes():
    assert chosen("mlp_forward", d_out=64).kernel == "mlp"
    assert chosen("mlp_backward", d_out=64).kernel == "mlp"
    assert chosen("mlp_forward", d=4096, d_out=64).kernel == "dual"
    assert chosen("bilinear_forward").kernel == "dual"
    assert chosen("bilinear_forward", d_in=16384).kernel == "pointwise"
    assert chosen("bilinear_backward", d_in=16384).kernel == "pointwise"


def test_a_backward_depends_on_what_is_saved():
    assert chosen("bilinear_backward", d_in=512).kernel == "dual"
    assert chosen("bilinear_backward", d_in=512, saved=True).kernel == "pointwise"
    assert chosen("bilinear_backward", d_in=32, saved=True).kernel == "dual"
    assert chosen("mlp_backward", d_out=64).kernel == "mlp"
    elementwise = chosen("mlp_backward", d_in=32, d_out=64, saved=True)
    assert elementwise.kernel == "pointwise"
    assert "[L, R] is saved" in elementwise.reason


def test_an_unmeasured_table_prefers_the_librarys_matmul():
    table = dispatch.table()
    if table["measured"]:
        pytest.skip("the table was measured")
    for device in table["paths"].values():
        for kind, limits in device.items():
            assert limits["dual_forward"]["d_in"] <= (768 if kind == "half" else 128)
            assert limits["dual_recompute"]["d_in"] <= limits["dual_forward"]["d_in"]
            assert limits["dual_backward"]["d_in"] <= 64


def test_the_whole_mlps_backward_is_one_pass():
    table = dispatch.table()
    for name, device in table["paths"].items():
        for kind, limits in device.items():
            tile = dispatch.tile_of_class("mlp_backward", 4096, kind, name)
            most = limits["mlp_backward"]
            assert most["d"] <= tile.block_d
            assert most["d_in"] <= tile.block_k
            assert most["d_out"] <= tile.block_n


def test_a_choice_says_why_and_what_it_rests_on():
    made = chosen("bilinear_forward", d_in=16384)
    assert "16384" in made.reason
    assert dispatch.table()["source"] in made.reason
    assert made.tile is None
    assert chosen("bilinear_forward").tile == dispatch.tile_of_class(
        "dual_forward", 4096, "half", "sm_90"
    )


def test_rows_matter_only_by_class():
    configs = {chosen("bilinear_forward", m=m).tile for m in range(1, 20_000, 97)}
    assert len(configs) <= 2


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
@pytest.mark.parametrize("precision", ["ieee", "tf32", "tf32x3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_device_and_arithmetic_has_a_tile(capability, precision, dtype):
    for op, d_out in (("bilinear_forward", None), ("mlp_backward", 16)):
        found = choose(op, 100, 32, 16, d_out, dtype, capability, precision)
        assert isinstance(found.tile, Tile)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("conv_forward", 1, 1, 1, None, torch.float32, HOPPER, "ieee"), "op: expected"),
        (("mlp_forward", 1, 1, 1, None, torch.float32, HOPPER, "ieee"), "d_out: expected a size"),
        (("bilinear_forward", 1, 1, 1, 4, torch.float32, HOPPER, "ieee"), "d_out: expected None"),
        (("bilinear_forward", 1, 1, 1, None, torch.int32, HOPPER, "ieee"), "dtype: expected"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        choose(*arguments)


@pytest.mark.parametrize("extent", [1, 15, 16, 17, 64, 65, 1000])
def test_blocks_shrink_to_what_covers_the_problem(extent):
    assert cover(extent) == max(16, 2 ** math.ceil(math.log2(extent)))
    tile = Tile(block_m=128, block_d=64, block_k=32, num_warps=4, num_stages=2)
    fitted = tile.fit(m=extent, d=extent, k=extent)
    assert fitted.block_m == min(128, cover(extent))
    assert fitted.block_d == min(64, cover(extent))
    assert fitted.block_n == 0
    assert tile.fit(d=extent).block_m == 128


@pytest.mark.parametrize("refusal", ["resources", "compiler", "memory"])
def test_search_keeps_the_fastest_and_skips_what_is_refused(refusal):
    from triton.runtime.errors import OutOfResources

    errors = {
        "resources": OutOfResources(1, 0, "shared memory"),
        "compiler": RuntimeError("PassManager::run failed"),
        "memory": torch.OutOfMemoryError("CUDA out of memory"),
    }
    around = dispatch.tile_of_class("dual_forward", 4096, "half", "sm_90")
    tiles = tune.candidates("dual_forward", around)
    assert tiles[0] == around
    assert len(set(tiles)) == len(tiles) > 3
    times = {tile: 1.0 + index for index, tile in enumerate(reversed(tiles))}

    def timer(run):
        tile = run()
        if tile == tiles[-1]:
            raise errors[refusal]
        return times[tile]

    assert tune.fastest(tiles, lambda tile: tile, timer) == tiles[-2]
    assert tune.fastest(tiles[-1:], lambda tile: tile, timer) is None


def test_tuning_fits_a_visit():
    # 0.64 s a compilation by count, the measuring besides: all of 16 bits within two minutes.
    for kinds, most in ((["half"], 110), (tune.KINDS, 440)):
        compiled = sum(
            len(
                tune.candidates(
                    e.kernel, dispatch.tile_of_class(e.kernel, e.m, e.kind, "sm_90"), e.kind
                )
            )
            for e in tune.entries(kinds)
        )
        assert len(kinds) * 18 < compiled < most
    first = tune.entries(["tf32", "half"])[0]
    assert (first.kernel, first.rows) == ("mlp_forward", "large")


def test_candidates_fit_by_count():
    wide = Tile(block_m=256, block_d=256, block_k=64, num_warps=4, num_stages=3)
    assert not tune.fits("dual_forward", wide, "half", "sm_90")
    for entry in tune.entries():
        for device in ("sm_80", "sm_90"):
            around = dispatch.tile_of_class(entry.kernel, entry.m, entry.kind, device)
            for tile in tune.candidates(entry.kernel, around, entry.kind, device)[1:]:
                assert tune.fits(entry.kernel, tile, entry.kind, device)


def test_a_measured_tile_and_limit_go_into_the_table(tmp_path):
    entry = tune.Entry("dual_forward", "ieee", "large")
    ran = []

    def timer(run):
        run()
        ran.append(run)
        return float(len(ran))

    tile = tune.tuned_tile(entry, "sm_80", timer, on="cpu", tiny=True)
    assert tile == dispatch.tile_of_class("dual_forward", 4096, "ieee", "sm_80")
    assert len(ran) > 3
    table = tune.with_tile(dispatch.table(), "sm_80", entry, Tile(16, 4, 1, 32, 0, 64))
    assert table["tiles"]["sm_80"]["ieee"]["dual_forward"]["large"]["block_k"] == 64
    assert dispatch.table()["tiles"]["sm_80"]["ieee"]["dual_forward"]["large"]["block_m"] != 16
    signed = tune.signed(table, "sm_80", ["one tile"], "a device")
    tune.save(signed, tmp_path / "table.json")
    assert json.loads((tmp_path / "table.json").read_text()) == signed
    assert "one tile" in signed["source"]


@pytest.mark.parametrize("direction", ["forward", "backward", "recompute"])
def test_limits_follow_the_times(direction):
    ran = []

    def faster_first(run):
        run()
        ran.append(run)
        return float(len(ran) % 2 == 0)  # the fused way comes first

    def slower_first(run):
        run()
        ran.append(run)
        return float(len(ran) % 2)

    where = {"on": "cpu", "tiny": True}
    paths = tune.with_limits(dispatch.table(), "sm_90", "ieee", direction, faster_first, **where)
    limits = paths["paths"]["sm_90"]["ieee"]
    assert limits[f"dual_{direction}"]["d_in"] == 32
    whole = limits.get(f"mlp_{direction}", {"none": 16})
    assert min(whole.values()) > 0
    ran.clear()
    paths = tune.with_limits(dispatch.table(), "sm_90", "ieee", direction, slower_first, **where)
    limits = paths["paths"]["sm_90"]["ieee"]
    assert limits[f"dual_{direction}"]["d_in"] == 0
    assert set(limits.get(f"mlp_{direction}", {"none": 0}).values()) == {0}


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_recomputes_in_a_tile_that_it_fits(gate: str) -> None:
    def backward(d_in: int, capability: tuple[int, int] = (9, 0), **more: bool) -> dispatch.Detail:
        sizes = 8192, d_in, 1024, None, torch.bfloat16
        return choose("bilinear_backward", *sizes, capability, "ieee", gate=gate, **more)

    is_identity = gate == "identity"
    narrow, wide = backward(384), backward(768)
    assert (narrow.kernel, wide.kernel) == ("dual", "dual" if is_identity else "pointwise")
    assert narrow.tile is not None
    assert narrow.tile.block_d == (128 if is_identity else 64)
    ampere = backward(512, (8, 0))  # whose tile has room for a gate
    assert ampere.kernel == "dual"
    assert ampere.tile == dispatch.tile_of_class("dual_backward", 8192, "half", "sm_80")
    assert backward(64, saved=True).kernel == "dual"
    assert backward(65, saved=True).kernel == "pointwise"
