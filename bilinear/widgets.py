"""A results folder with sliders in a notebook: `pip install 'bilinear[notebook]'`.

Pictures are PNG bytes in an image widget, which every notebook shows alike.
"""

import html
import io
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bilinear import plots
from bilinear.errors import ResultsError
from bilinear.page.write import make_page
from bilinear.reading.interactions import interaction_matrices, logit_table
from bilinear.results.sweep_results import Results

if TYPE_CHECKING:
    from IPython.display import HTML
    from ipywidgets import VBox

VIEWS = {"full Q": "full", "functional P×P table": "functional"}
SCALES = {"one for all widths": "all", "each width its own": "own"}


def explore(results: Results) -> "VBox":
    """Return a slider over the widths, and menus for remainder, seed, matrix and colour scale.

    Shows the interaction matrix (or the functional table of logits), the signed eigenspectrum and
    the top eigenvectors of the chosen model. Raises ResultsError if no model has ended, and
    ImportError if ipywidgets is not installed.
    """
    import ipywidgets

    if not results.jobs:
        raise ResultsError(f"{results.folder}: no model has ended yet")
    widths = sorted({job.d_hidden for job in results.jobs}, reverse=True)
    seeds = sorted({job.seed for job in results.jobs})
    p = results.config.p
    first = next(iter(results.config.remainders), 0)
    width = ipywidgets.SelectionSlider(
        options=widths, description="width d", layout={"width": "40em"}
    )
    remainder = ipywidgets.Dropdown(options=range(p), value=first, description="remainder")
    seed = ipywidgets.Dropdown(options=seeds, description="seed")
    view = ipywidgets.Dropdown(options=list(VIEWS.items()), description="matrix")
    scale = ipywidgets.Dropdown(options=list(SCALES.items()), description="colours")
    verdict, image = ipywidgets.HTML(), ipywidgets.Image(format="png")
    limit = cache(lambda view, c, seed: _typical_limit(results, view, c, seed))

    def draw(change: object = None) -> None:
        job, c = (width.value, seed.value), remainder.value
        if job not in results.models:
            verdict.value = f"No model of width {job[0]} and seed {job[1]} in these results."
            image.value = b""
            return
        verdict.value = _verdict(results, *job)
        matrix = _matrix(results, *job, c, view.value)
        most = float(matrix.abs().max()) or 1.0
        shown = most if scale.value == "own" else limit(view.value, c, seed.value)
        image.value = _picture(results, *job, c, matrix, shown)

    for control in (width, remainder, seed, view, scale):
        control.observe(draw, names="value")
    draw()
    choices = ipywidgets.HBox([remainder, seed, view, scale], layout={"flex_flow": "row wrap"})
    return ipywidgets.VBox([width, choices, verdict, image])


def page(
    results: Results,
    *,
    widths: Sequence[int] | None = None,
    remainders: Sequence[int] | None = None,
    height: int = 900,
) -> "HTML":
    """Show the page of `view` in a notebook: its slider works in exported HTML as well.

    `widths` None shows all, `remainders` None those stored; `height` is in pixels. Raises what
    `page.write.make_page` raises.
    """
    from IPython.display import HTML

    made = make_page(results, widths=widths, remainders=remainders)
    source = html.escape(made.html.decode())
    style = f"width:100%;height:{height}px;border:0"
    return HTML(f'<div><iframe style="{style}" srcdoc="{source}"></iframe></div>')


def _matrix(results: Results, d_hidden: int, seed: int, c: int, view: str) -> Tensor:
    compute = interaction_matrices if view == "full" else logit_table
    return compute(results.models[d_hidden, seed], c)


def _typical_limit(results: Results, view: str, c: int, seed: int) -> float:
    """1.5 times the median over widths of the 99.5th percentile of |entries|.

    A few widths have far larger entries: a maximum over widths would leave the others white.
    """
    matrices = [_matrix(results, d, s, c, view) for d, s in results.jobs if s == seed]
    tops = [m.abs().flatten().quantile(0.995) for m in matrices]
    return 1.5 * float(torch.stack(tops).median()) or 1.0


def _verdict(results: Results, d_hidden: int, seed: int) -> str:
    table = results.table
    row = table[(table["d_hidden"] == d_hidden) & (table["seed"] == seed)].iloc[0]
    n = results.config.p**2
    return (
        f"<b>{round(row['full_acc'] * n):,} of {n:,} pairs right</b>, smallest margin "
        f"{row['min_margin']:.3g} logits, {row['steps']:,} steps"
    )


def _picture(
    results: Results, d_hidden: int, seed: int, c: int, matrix: Tensor, limit: float
) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.2), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplot_mosaic([["matrix", "values"], ["matrix", "vectors"]])
    ax = axes["matrix"]
    if len(matrix) == results.config.p:
        plots.functional_table(matrix, ax, limit=limit)
        title = f"Functional table: logit of remainder {c} on all pairs, d = {d_hidden}"
    else:
        plots.interaction_matrix(matrix, ax, limit=limit)
        title = f"Full interaction matrix Q of remainder {c}, d = {d_hidden}"
    ax.set_title(title, fontsize=10)
    figure.colorbar(ax.images[0], ax=ax, label="logits", shrink=0.8)
    chosen = {"remainder": c, "seed": seed}
    plots.eigenspectra(results, axes["values"], widths=[d_hidden], limit=None, **chosen)
    plots.eigenvectors(results, axes["vectors"], width=d_hidden, **chosen)
    content = io.BytesIO()
    canvas.print_png(content)
    return content.getvalue()
