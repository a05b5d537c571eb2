"""The page of a study: its numbers and links; and the answer that a study prints."""

import re
from pathlib import Path

import pytest

import bilinear
from bilinear.cli.commands import main
from bilinear.cli.report import _study_answer
from bilinear.page.study import write_study_page

GRID = ["--fused", "--p", "5,7", "--widths", "8,3", "--seeds", "2", "--steps", "150"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study") / "out"
    assert main([*GRID, "--out", str(out), "--quiet"]) == 0
    return out


def test_a_row_a_cell_and_a_rectangle_a_width(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["view", str(folder), "--no-open"]) == 0
    assert "wrote " in capsys.readouterr().out
    html = (folder / "view.html").read_text(encoding="utf-8")
    results = bilinear.load_results(folder)
    assert isinstance(results, bilinear.StudyResults)
    rows = re.findall(r"<tr><td>.*?</tr>", html)
    cells = results.summary()["cells"]
    assert len(rows) == len(cells) == 2
    for row, cell in zip(rows, cells, strict=True):
        link = re.search(r'href="([^"]+)"', row)
        assert (folder / link[1]).exists()
        assert f">{cell['p']}</a>" in row
        assert f"<td>{cell['perfect']}/4</td>" in row
        for width in cell["widths"]:
            assert f"d = {width['d_hidden']}: {width['perfect']} of 2 perfect" in row
    assert "the same in all: share trained on 0.75, lr 0.05, weight decay 0.4" in html
    assert not re.search(r"<script|https?://", html)


def test_without_pages_of_cells_there_are_no_links(folder: Path, tmp_path: Path) -> None:
    for page in folder.glob("cells/*/view.html"):
        page.unlink()
    write_study_page(bilinear.load_results(folder), tmp_path / "page.html")
    assert 'href="cells' not in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_study_ends_with_a_sentence_and_hides_what_all_cells_share(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "all cells: train 0.75, lr 0.05, decay 0.4"
    assert lines[1].split() == ["P", "perfect", "smallest", "all", "from"]
    cells = bilinear.load_results(folder).summary()["cells"]
    assert lines[-1] == _study_answer(cells, ["p"])
    one, other = ({"p": p, "smallest_perfect_width": d} for p, d in ((5, 3), (7, None)))
    assert _study_answer([one, other], ["p"]) == (
        "smallest width with a model right on all pairs: 3 (P 5); 1 of 2 cells have none"
    )
    assert _study_answer([other], ["p"]) == "no cell has a model right on all its pairs"
