"""The page of a study: a row a cell with a strip of its widths, and a link to its own page."""

import os
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bilinear.errors import ResultsError
from bilinear.experiment.study import AXES, cell_name
from bilinear.results.folder import write_whole
from bilinear.results.study_results import StudyResults

_NAMES = {"p": "P", "train_frac": "share trained on", "lr": "lr", "weight_decay": "weight decay"}


def write_study_page(results: StudyResults, path: str | os.PathLike[str]) -> int:
    """Write the page, replacing what is there; returns its bytes.

    Cells whose folder holds a `view.html` are linked to it, relative to the study's folder. Raises
    ResultsError if no model has ended yet.
    """
    cells = results.summary()["cells"]
    if not cells:
        raise ResultsError(f"{results.folder}: no model of this study has ended yet")
    varied = [axis for axis in AXES if len({cell[axis] for cell in cells}) > 1]
    widths = [w["d_hidden"] for cell in cells for w in cell["widths"]]
    ends = (max(widths), min(widths))
    headings = [*(_NAMES[axis] for axis in varied), "perfect", "smallest", "all from"]
    head = "".join(f"<th>{name}</th>" for name in headings)
    scale = f'<div class="ends"><span>d = {ends[0]}</span><span>{ends[1]}</span></div>'
    begun = [r for r in results.begun if r.jobs]
    links = [
        f"cells/{quote(cell_name(r.config))}/view.html" if r.folder.exists("view.html") else ""
        for r in begun
    ]
    rows = [_row(cell, varied, ends, link) for cell, link in zip(cells, links, strict=True)]
    same = ", ".join(f"{_NAMES[axis]} {cells[0][axis]:g}" for axis in AXES if axis not in varied)
    models = sum(cell["models"] for cell in cells)
    parts = {
        "<!--TITLE-->": f"{len(cells)} cells, {models:,} models of (a + b) mod P",
        "<!--LEAD-->": f"{_answer(cells)}{'; the same in all: ' + same if same else ''}.",
        "<!--TABLE-->": f"<tr>{head}<th>{scale}</th></tr>\n" + "\n".join(rows),
    }
    html = (files("bilinear") / "page" / "study.html").read_text(encoding="utf-8")
    for marker, part in parts.items():
        html = html.replace(marker, part)
    content = html.encode()
    write_whole(Path(path), content)
    return len(content)


def _answer(cells: list[dict[str, Any]]) -> str:
    found = [c["smallest_perfect_width"] for c in cells if c["smallest_perfect_width"] is not None]
    if not found:
        return "No model is right on all of its pairs"
    return f"The smallest width with a model right on all pairs is {min(found)}"


def _row(cell: dict[str, Any], varied: list[str], ends: tuple[int, int], link: str) -> str:
    settings = [f"{cell[axis]:g}" for axis in varied]
    if link and settings:
        settings[0] = f'<a href="{link}">{settings[0]}</a>'
    widths = [cell["smallest_perfect_width"], cell["all_perfect_from_width"]]
    values = [*settings, f"{cell['perfect']}/{cell['models']}"]
    values += ["—" if width is None else str(width) for width in widths]
    shown = "".join(f"<td>{value}</td>" for value in values)
    return f"<tr>{shown}<td>{_strip(cell['widths'], ends)}</td></tr>"


def _strip(widths: list[dict[str, Any]], ends: tuple[int, int]) -> str:
    """One rectangle a width, at the same place in every row."""
    most, least = ends
    boxes = []
    for w in widths:
        d, share = w["d_hidden"], w["share"]
        text = f"d = {d}: {w['perfect']} of {w['models']} perfect"
        fill = f"color-mix(in srgb, var(--yes) {100 * share:.0f}%, var(--no))"
        boxes.append(
            f'<rect x="{most - d}" width="1.02" height="1" style="fill:{fill}">'
            f"<title>{text}</title></rect>"
        )
    size = most - least + 1
    return f'<svg viewBox="0 0 {size} 1" preserveAspectRatio="none">{"".join(boxes)}</svg>'
