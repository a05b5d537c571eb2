"""bench.compare reports slower results, and does not report noise."""

import json
from pathlib import Path

import pytest

from bench import compare


def _file(path: Path, **stats: tuple[float, float, float]) -> str:
    benchmarks = [
        {"fullname": name, "stats": dict(zip(("q1", "median", "q3"), values, strict=True))}
        for name, values in stats.items()
    ]
    path.write_text(json.dumps({"benchmarks": benchmarks}))
    return str(path)


def test_only_what_leaves_the_spread_is_slower(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = _file(tmp_path / "old", slow=(0.9, 1, 1.1), noisy=(0.5, 1, 1.5), fast=(0.9, 1, 1.1))
    new = _file(tmp_path / "new", slow=(1.2, 1.5, 1.6), noisy=(1.2, 1.4, 1.6), fast=(0.4, 0.5, 0.6))
    assert compare.main([old, new]) == 1
    shown = capsys.readouterr().out
    assert "1.50x" in shown
    assert "1 of 3 slower" in shown
    assert "noisy" not in shown
    assert compare.main([old, old]) == 0


def test_nothing_in_common_is_no_success(tmp_path: Path) -> None:
    old, new = _file(tmp_path / "old", a=(1, 1, 1)), _file(tmp_path / "new", b=(1, 1, 1))
    assert compare.main([old, new]) == 2


def test_rows_of_a_gpu_visit(tmp_path: Path) -> None:
    def row(median: float) -> dict:
        times = {"fused": {"median": median, "p10": 0.95 * median, "p90": 1.05 * median}}
        return {"rows": [{"op": "layer", "m": 4096, "times": times}]}

    found = compare.slower(compare.timings(row(1.0)), compare.timings(row(1.5)))
    assert found == {"op=layer m=4096 fused": 1.5}
    with pytest.raises(ValueError, match="'benchmarks' or 'rows'"):
        compare.timings({"quick": True})


def test_another_machine_is_told_apart_from_a_slower_library(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(matmul: float) -> str:
        roof = {"best": matmul, "median": matmul, "rounds": 5}
        roofs = {"cpu": {"copy, bytes/s": roof, "matmul, FLOP/s": {"fp32": roof}}}
        path = Path(_file(tmp_path / f"{matmul}", a=(1, 1, 1)))
        content = json.loads(path.read_text()) | {"machine_info": {"roofs": roofs}}
        path.write_text(json.dumps(content))
        return str(path)

    compare.main([run(100.0), run(95.0)])
    assert "machine itself" not in capsys.readouterr().out
    compare.main([run(100.0), run(50.0)])
    assert "matmul fp32: 100 -> 50" in capsys.readouterr().out
