"""The page and the README's table are what the committed results say."""

import json
import shutil
from pathlib import Path

import pytest

from bench import report


def test_page_and_readme_are_made_from_the_results() -> None:
    hint = "python -m bench.report"
    assert report.PAGE.read_text() == report.page(), hint
    readme = (report.ROOT / "README.md").read_text()
    assert report.with_table(readme, report.readme_table()) == readme, hint


def test_every_contest_is_told(tmp_path: Path) -> None:
    cpu = json.loads((report.RESULTS / "cpu.json").read_text())
    found = report.contests(cpu)
    ours = {one["group"] for one in cpu["benchmarks"] if "[fused" in one["name"]}
    assert ours <= {contest.group for contest in found}
    report.draw(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_numbers_come_from_the_results(tmp_path: Path) -> None:
    for file in report.RESULTS.glob("*.json"):
        shutil.copy(file, tmp_path)
    content = json.loads((tmp_path / "cpu.json").read_text())
    one = next(b for b in content["benchmarks"] if b["name"].startswith("test_step[compiled-16"))
    before = next(c for c in report.contests(content) if c.group == one["group"])
    assert before.verdict == "faster"
    for key in ("median", "q1", "q3"):
        one["stats"][key] *= 100
    after = next(c for c in report.contests(content) if c.group == one["group"])
    assert after.ratio[0] == pytest.approx(before.ratio[0] / 100)
    assert after.verdict == "slower"
    (tmp_path / "cpu.json").write_text(json.dumps(content))
    assert f"{one['group']};" in report.page(tmp_path) or one["group"] in report.page(tmp_path)
    assert report.page(tmp_path) != report.page()
    assert report.readme_table(tmp_path) != report.readme_table()


def test_readme_without_markers_is_named() -> None:
    with pytest.raises(ValueError, match="README"):
        report.with_table("no markers", "table")
