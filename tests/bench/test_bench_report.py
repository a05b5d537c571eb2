"""docs/performance.md, its pictures and the README's table agree with the committed results."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench import report
from bench.measure.roofs import Roof, Roofs
from bench.verdicts import contests


def _cpu() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((report.RESULTS / "cpu.json").read_text())
    return content


def test_page_and_readme_are_made_from_the_results() -> None:
    hint = "python -m bench.report"
    assert report.PAGE.read_text() == report.page(), hint
    readme = (report.ROOT / "README.md").read_text()
    assert report.with_table(readme, report.readme_table()) == readme, hint


def test_every_contest_is_on_the_page() -> None:
    cpu = _cpu()
    found = contests(cpu)
    ours = {one["group"] for one in cpu["benchmarks"] if one["params"]["way"] == "fused"}
    assert ours <= {contest.group for contest in found}
    page = report.page()
    for contest in found:
        task = contest.group.partition(": ")[2] or contest.group
        assert task.removeprefix("memory, ") in page
    for axis in ("M", "d", "models", "P"):
        points = [c for c in found if c.ours.notes.get("axis") == axis]
        assert len(points) >= 4, axis


def test_pictures_are_drawn_and_shown(tmp_path: Path) -> None:
    report.draw(report.RESULTS, tmp_path)
    page = report.page()
    drawn = sorted(tmp_path.glob("*.png"))
    assert len(drawn) == 4
    for picture in drawn:
        assert picture.stat().st_size > 10_000
        assert f"(performance/{picture.name})" in page
        assert (report.PICTURES / picture.name).exists()


def test_numbers_come_from_the_results(tmp_path: Path) -> None:
    for file in report.RESULTS.glob("*.json"):
        shutil.copy(file, tmp_path)
    content = json.loads((tmp_path / "cpu.json").read_text())
    one = next(b for b in content["benchmarks"] if b["name"].startswith("test_step[compiled-16"))
    before = next(c for c in contests(content) if c.group == one["group"])
    assert before.verdict == "faster"
    for key in ("median", "q1", "q3"):
        one["stats"][key] *= 100
    after = next(c for c in contests(content) if c.group == one["group"])
    assert after.ratio[0] == pytest.approx(before.ratio[0] / 100)
    assert after.verdict == "slower"
    (tmp_path / "cpu.json").write_text(json.dumps(content))
    slower = next(line for line in report.page(tmp_path).splitlines() if "**Not faster" in line)
    assert one["group"] in slower
    assert one["group"] not in next(line for line in report.page().splitlines() if "**Not" in line)
    assert report.readme_table(tmp_path) != report.readme_table()


def test_shares_are_of_the_roofs_of_the_same_run() -> None:
    cpu = _cpu()
    roofs = Roofs.from_dict(cpu["machine_info"]["roofs"]["cpu"])
    counted = [one for one in cpu["benchmarks"] if "flop" in one["extra_info"]]
    groups = {one["group"] for one in counted}
    assert any("sweep" in group for group in groups)
    assert any("layer forward and backward" in group for group in groups)
    for one in counted:
        notes, seconds = one["extra_info"], one["stats"]["median"]
        share = roofs.share(notes["flop"], notes["bytes"], seconds)
        assert notes["share of the roof"] == pytest.approx(share, rel=1e-3)


def test_floor_is_the_nearer_roof() -> None:
    roofs = Roofs(copy=Roof(10.0, 9.0, 5), matmul={"fp32": Roof(100.0, 90.0, 5)})
    assert Roofs.from_dict(roofs.to_dict()) == roofs
    assert roofs.least_seconds(flop=200, moved=10) == 2
    assert roofs.least_seconds(flop=200, moved=30) == 3
    assert roofs.share(flop=200, moved=30, seconds=6) == 0.5


def test_a_readme_without_markers_raises_an_error() -> None:
    with pytest.raises(ValueError, match="README"):
        report.with_table("no markers", "table")
