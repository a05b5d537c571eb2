"""The measuring itself: that contestants take turns, and that the GPU visit's code runs."""

import json
import time
from pathlib import Path

import pytest

from bench import gpu
from bench.contest import take_turns


def test_contestants_take_turns() -> None:
    calls: list[str] = []

    def slow() -> None:
        calls.append("slow")
        time.sleep(0.002)

    durations = take_turns({"slow": slow, "fast": lambda: calls.append("fast")}, seconds=0.02)
    rounds = len(durations["slow"])
    assert rounds >= 5
    assert calls == ["slow", "fast"] + ["slow", "slow", "fast", "fast"] * rounds
    assert min(durations["slow"]) >= 0.002 > sorted(durations["fast"])[rounds // 2]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # inside torch.compile
@pytest.mark.parametrize(
    "part", ["tests", "command", "steps", "roofs", "layer", "tune", "frontier"]
)
def test_gpu_visit_runs_without_a_gpu(part: str, tmp_path: Path) -> None:
    assert gpu.main(["--quick", "--parts", part, "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / f"gpu-{part}.json").read_text())
    assert content["quick"]
    assert "failed" not in content
    if part == "layer":
        assert len(content["rows"]) == 6
        assert all(row["times"]["fused"]["median"] > 0 for row in content["rows"])
    if part == "steps":
        assert not any(case["failed"] for case in content["cases"].values() if "failed" in case)
    if part in ("tests", "tune"):
        assert content["exit"] == 0
