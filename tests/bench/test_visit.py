"""`bench.gpu` without a GPU: an item that fails loses no other item's result."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu
from bench.visit import archive, counters, smoke, stand_ins, tests, tiles, turn
from bench.visit.commands import Done, run
from bench.visit.items import Item, Visit, read, write
from bench.visit.parts import PARTS, Part, file_of
from bilinear.kernels import dispatch
from bilinear.kernels.gates_device import GATES

pytest.importorskip("triton")


def _content(part: str, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file_of(part, folder).read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_a_dry_run_saves_every_item(part: str, tmp_path: Path) -> None:
    table = dispatch.TABLE.read_bytes()
    assert gpu.main(["--quick", "--parts", part, "--out", str(tmp_path)]) == 0
    content = _content(part, tmp_path)
    assert content["quick"]
    assert content["left"] == []
    assert "running" not in content
    failing = [key for key in content["items"] if key.startswith("stand-in")]
    assert len(failing) == 1
    for key, found in content["items"].items():
        assert ("failed" in found) == (key in failing), found
    visit = Visit(torch.device("cpu"), True, time.time() + 99, tmp_path)
    assert set(content["items"]) == {*(item.key for item in PARTS[part].items(visit)), *failing}
    if part == "layer":
        for row in content["rows"]:
            assert {"fused", "recompute", "eager"} <= set(row["times"])
            assert row["times"]["fused"]["share of the roof"] > 0
            assert "CUDA" in row["absent"]["liger"]
    if part == "smoke":
        assert len(content["items"]["against float64"]["relative errors"]) >= 14
    if part == "roofs":
        roofs = content["items"]["roofs"]["roofs"]
        assert roofs["matmul, FLOP/s"].keys() == {"bf16", "tf32", "fp32"}
    if part == "tiles":
        assert content["table"]["tiles"]["sm_90"]["ieee"].keys()
        assert "dry run" in content["table"]["source"]
    if part == "sweep":
        assert not any(found.get("ways that failed") for found in content["items"].values())
        assert content["items"]["training, one narrowed chain"]["models"] == 2
    if part == "counters":
        assert content["modelled against measured"] == []
        assert 9e4 > content["items"]["modelled: training, d = 16"]["cycles"] > 3e4
    assert dispatch.TABLE.read_bytes() == table


def test_dry_runs_of_all_parts_fail_in_every_way() -> None:
    kinds = set()
    for place in range(len(PARTS)):
        first, failing, *rest = stand_ins.among([Item("a", _nothing), Item("b", _nothing)], place)
        assert (first.key, rest[0].key) == ("a", "b")
        kinds.add(failing.key.removeprefix("stand-in: "))
    assert kinds == set(stand_ins.WAYS)


def _nothing(visit: Visit) -> dict[str, Any]:
    return {}


def test_smoke_has_every_gate_and_ends_within_two_minutes() -> None:
    visit = Visit(torch.device("cuda"), False, time.time() + 999, Path())
    assert sum(item.seconds(visit) for item in PARTS["smoke"].items(visit)) <= 120
    cases = smoke.cases(torch.device("cuda"))
    for gate in GATES:
        for name in ("dual", "mlp one pass", "mlp by gradient", "pointwise"):
            assert f"{name} bfloat16 {gate}" in cases
    for case in cases:
        assert sum(bool(re.search(group, case)) for group in smoke.groups()) == 1, case


def test_an_item_in_which_the_worker_died_is_marked_as_failed(tmp_path: Path) -> None:
    path = file_of("roofs", tmp_path)
    write(path, {"items": {"a": {}}, "running": "b"})
    assert gpu._ended_in(path, 139, out_of_time=False)
    content = read(path)
    assert "139" in content["items"]["b"]["failed"]
    assert content["items"]["a"] == {}
    assert "running" not in content


def test_an_item_stopped_at_the_end_of_the_call_is_left_for_the_next(tmp_path: Path) -> None:
    path = file_of("roofs", tmp_path)
    write(path, {"items": {"a": {}}, "running": "b", "left": ["b"]})
    assert not gpu._ended_in(path, None, out_of_time=True)
    assert read(path) == {"items": {"a": {}}, "left": ["b"]}


def test_a_second_call_continues_where_the_first_stopped(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = file_of("roofs", tmp_path)
    done = {"told": "measured by an earlier call"}
    write(path, {
        "items": {"roofs": done}, "quick": True, "environment": {"gpu": "another"}, "seconds": 3.0,
    })  # fmt: skip
    assert gpu.main(["--quick", "--parts", "roofs", "--out", str(tmp_path)]) == 0
    content = read(path)
    assert content["items"]["roofs"] == done
    assert content["environment"] == {"gpu": "another"}
    assert "roofs     1 done" in capfd.readouterr().out
    assert (
        gpu.main(["--quick", "--parts", "roofs", "--again", "roofs", "--out", str(tmp_path)]) == 0
    )
    assert "roofs" in read(path)["items"]["roofs"]


def test_the_part_that_has_used_the_fewest_of_its_turns_is_next(tmp_path: Path) -> None:
    names = ["smoke", "tests", "roofs"]
    assert gpu.next_part(names, tmp_path) == "smoke"
    used = {"smoke": 0.9, "tests": 2.0, "roofs": 1.1}  # of their turns; in seconds roofs is least
    for name, turns in used.items():
        seconds = turns * PARTS[name].turn
        write(file_of(name, tmp_path), {"seconds": seconds, "items": {}, "left": ["a"]})
    assert gpu.next_part(names, tmp_path) == "smoke"
    write(file_of("smoke", tmp_path), {"seconds": 1.0, "items": {}, "left": []})
    assert gpu.next_part(names, tmp_path) == "roofs"
    assert gpu.next_part(["smoke"], tmp_path) is None


def test_no_item_starts_after_the_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def item(key: str) -> Item:
        def run(visit: Visit) -> dict[str, Any]:
            ran.append(key)
            time.sleep(0.2)
            return {}

        return Item(key, run, least=1)

    part = Part(lambda _: [item("a"), item("b"), item("c")], turn=0)
    monkeypatch.setitem(turn.PARTS, "roofs", part)
    visit = Visit(torch.device("cpu"), False, time.time() + 60, tmp_path)
    path = file_of("roofs", tmp_path)
    turn.work("roofs", path, visit, turn=0.3)
    assert (ran, read(path)["left"]) == (["a", "b"], ["c"])
    turn.work("roofs", path, visit, turn=-1)
    assert (ran, read(path)["left"]) == (["a", "b"], ["c"])
    turn.work("roofs", path, visit, turn=1)
    assert (ran, read(path)["left"]) == (["a", "b", "c"], [])


def test_a_quarter_of_an_hour_gives_every_part_a_turn() -> None:
    assert sum(part.turn for part in PARTS.values()) <= 9 * 60


def test_results_and_logs_are_packed_and_unpacked(tmp_path: Path) -> None:
    measured, sent, unpacked = tmp_path / "measured", tmp_path / "sent", tmp_path / "unpacked"
    command = ["--quick", "--parts", "roofs", "--out", str(measured)]
    assert gpu.main([*command, "--home", str(sent)]) == 0
    (measured / "logs").mkdir()
    (measured / "logs" / "one.log").write_text("output")
    archive.pack(measured, sent)
    assert [path.name for path in sent.iterdir()] == [archive.NAME]
    assert gpu.main(["--unpack", str(sent / archive.NAME), "--out", str(unpacked)]) == 0
    assert read(unpacked / "gpu-roofs.json") == read(measured / "gpu-roofs.json")
    assert (unpacked / "logs" / "one.log").read_text() == "output"


def test_table_of_modelled_and_measured_cycles() -> None:
    first, second, _ = counters.LOOPS
    items = {
        first: {"counters": {"sm__cycles_elapsed.max": "40,000 cycle"}},
        f"modelled: {first}": {"cycles": 60_000.0},
        second: {"failed": "exit 1"},
        f"modelled: {second}": {"cycles": 1.0},
    }
    row = {"kernel": first, "modelled": 60_000.0, "measured": 40_000.0, "ratio": 1.5}
    assert counters.against(items) == [row]
    assert counters.LOOPS.keys() == counters.RUNS.keys()


def test_a_dry_run_writes_nothing_into_the_repository(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--quick", "--out", str(gpu.ROOT / "bench" / "results")])
    assert "dry run" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_error_names_quick(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--quick" in capsys.readouterr().err


def test_a_table_of_a_dry_run_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "table.json"
    monkeypatch.setattr(dispatch, "TABLE", table)
    tiles.write_table({"quick": True, "table": {"measured": True}})
    tiles.write_table({"quick": False, "table": {"measured": False}})
    assert not table.exists()
    tiles.write_table({"quick": False, "table": {"measured": True}})
    assert json.loads(table.read_text()) == {"measured": True}


def test_a_command_that_hangs_is_killed_and_its_output_returned(tmp_path: Path) -> None:
    done = run(["bash", "-c", "echo begun; sleep 600 & sleep 600"], 0.5, tmp_path / "log")
    assert done.exit is None
    assert done.output == "begun\n"
    assert done.seconds < 5


def test_outcomes_of_a_pytest_run_that_was_stopped() -> None:
    output = (
        "[gw3] [ 10%] PASSED tests/kernels/test_dual.py::test_a[1] \n"
        "[gw0] [ 11%] FAILED tests/kernels/test_dual.py::test_b \n"
        "tests/kernels/test_dual.py::test_c PASSED [ 12%]\n"
    )
    found = tests.outcome(Done(None, 3.0, output))
    assert found["counts"] == {"FAILED": 1, "PASSED": 2}
    assert found["failures"] == ["tests/kernels/test_dual.py::test_b"]
    assert found["told"] == "1 failed, 2 passed, exit time ran out"
    assert "time ran out" in found["failed"]
    collected = tests.outcome(Done(0, 3.0, "<Module a>\n\n=== 7 tests collected in 1s ===\n"))
    assert collected["told"] == "7 tests collected in 1s, exit 0"


def test_counters_in_the_profilers_output() -> None:
    output = (
        "==PROF== Connected\n"
        '"ID","Kernel Name","gpu__time_duration.sum","dram__bytes_read.sum"\n'
        '"","","us","Mbyte"\n'
        '"0","dual_kernel","12.5","34"\n'
    )
    assert counters.read(output) == {
        "gpu__time_duration.sum": "12.5 us",
        "dram__bytes_read.sum": "34 Mbyte",
    }
    assert counters.read("==ERROR== nothing") == {}
