"""The slider in a notebook shows the model and the matrix that are chosen."""

import html
import io
from pathlib import Path

import pytest
from matplotlib import image

import bilinear
from bilinear.cli.commands import main
from bilinear.errors import ResultsError
from bilinear.page.write import make_page
from bilinear.results.sweep_results import Results

ipywidgets = pytest.importorskip("ipywidgets", reason="needs ipywidgets")
SWEEP = "--fused --p 7 --widths 6,4,1 --seeds 2 --steps 40 --remainders 3,0"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    out = tmp_path_factory.mktemp("widgets") / "run"
    assert main([*SWEEP.split(), "--out", str(out)]) == 0
    return bilinear.load_results(out)


def test_controls_change_the_picture(results: Results) -> None:
    from bilinear.widgets import explore

    width, choices, verdict, shown = explore(results).children
    remainder, seed, view, scale = choices.children
    assert (width.value, remainder.value, seed.value) == (6, 3, 0)
    pictures = [shown.value]
    changes = ((width, 4), (remainder, 0), (seed, 1), (view, "functional"), (scale, "own"))
    for control, value in changes:
        control.value = value
        pictures.append(shown.value)
    assert len(set(pictures)) == len(pictures)
    assert all(image.imread(io.BytesIO(png)).shape[:2] == (520, 1200) for png in pictures)
    right = round(results.table.set_index(["d_hidden", "seed"]).loc[(4, 1), "full_acc"] * 49)
    assert f"{right} of 49 pairs right" in verdict.value


def test_a_model_that_is_not_there_is_said(results: Results, tmp_path: Path) -> None:
    import shutil

    from bilinear.widgets import explore

    copy = tmp_path / "run"
    shutil.copytree(results.path, copy)
    (copy / "models" / "d004-s0001.safetensors").unlink()
    width, choices, verdict, shown = explore(bilinear.load_results(copy)).children
    choices.children[1].value = 1
    width.value = 4
    assert verdict.value.startswith("No model of width 4 and seed 1")
    assert shown.value == b""
    for model in (copy / "models").iterdir():
        model.unlink()
    with pytest.raises(ResultsError, match="no model has ended"):
        explore(bilinear.load_results(copy))


def test_the_page_stands_in_a_notebook(results: Results) -> None:
    from bilinear.widgets import page

    shown = page(results, widths=[6, 1], remainders=[3], height=500).data
    assert shown.startswith('<div><iframe style="width:100%;height:500px')
    inside = html.unescape(shown.partition('srcdoc="')[2].rpartition('"></iframe>')[0])
    assert inside == make_page(results, widths=[6, 1], remainders=[3]).html.decode()
