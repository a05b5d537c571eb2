"""Pictures of a sweep: each function takes data and an Axes, draws, and returns the Axes.

Colours: matplotlib's colour-blind-safe `tableau-colorblind10`, and for signed matrices `RdBu_r`
with white at true zero.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from torch import Tensor

    from bilinear.results import Results

# Widths at which the notebook's own run of P = 64 ended with every validation pair right (one
# unseeded model a width).
NOTEBOOK_PERFECT_WIDTHS = (38, 44, 45, 49, 51, 55, 59, 61, 62, 63)
_BLUE, _ORANGE, _GREY = "#006BA4", "#C85200", "#898989"


def accuracy_against_width(table: "pd.DataFrame", ax: "Axes", *, p: int | None = None) -> "Axes":
    """Errors on all p² pairs against width: median, spread over seeds, and who is perfect.

    Drawn as 1 − accuracy on a scale that is linear near 0, because the interest is in the last
    pairs. `p` 64 adds the notebook's perfect widths for comparison.
    """
    by_width = table.assign(error=1 - table["full_acc"]).groupby("d_hidden")
    error, perfect = by_width["error"], by_width["perfect"]
    widths = np.array(sorted(table["d_hidden"].unique()))
    if (by_width.size() > 1).any():
        ax.fill_between(
            widths, error.min(), error.max(), color=_BLUE, alpha=0.2, label="all seeds", lw=0
        )
    ax.plot(widths, error.median(), color=_BLUE, marker=".", label="median")
    share = perfect.mean()
    ax.scatter(
        widths[share > 0],
        np.zeros((share > 0).sum()),
        s=20 + 40 * share[share > 0],
        color=_ORANGE,
        zorder=3,
        label="at least one perfect model (area: share)",
    )
    if p == 64:
        y = np.full(len(NOTEBOOK_PERFECT_WIDTHS), -2.5e-5)
        label = "notebook: perfect on validation"
        ax.scatter(NOTEBOOK_PERFECT_WIDTHS, y, marker="|", color=_GREY, label=label)
    ax.set_yscale("symlog", linthresh=1e-4)
    ax.set_ylim(-5e-5, 1.5)
    ax.set_yticks([0, 1e-4, 1e-3, 1e-2, 1e-1, 1], ["0", "0.0001", "0.001", "0.01", "0.1", "1"])
    ax.set_xlabel("hidden width d")
    ax.set_ylabel("share of all pairs wrong")
    ax.grid(alpha=0.3)
    ax.legend(loc="upper right")
    return ax


def interaction_matrix(matrix: "Tensor", ax: "Axes", *, limit: float, title: str = "") -> "Axes":
    """One interaction matrix (2p, 2p), white at zero, with lines between the a and the b block."""
    p = matrix.shape[-1] // 2
    ax.imshow(matrix.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    ax.axhline(p - 0.5, color="black", lw=0.5)
    ax.axvline(p - 0.5, color="black", lw=0.5)
    ax.set_xticks([p / 2, 3 * p / 2], ["a", "b"])
    ax.set_yticks([p / 2, 3 * p / 2], ["a", "b"])
    ax.tick_params(length=0)
    ax.set_title(title, fontsize=9)
    return ax


def interaction_grid(
    matrices: "Tensor",
    widths: Sequence[int],
    remainders: Sequence[int],
    axes: "np.ndarray",
    *,
    limit: float | None = None,
) -> "np.ndarray":
    """Matrices (n_widths, n_remainders, 2p, 2p) on as many Axes, all on one colour scale.

    `limit` is the value of full colour; None takes the 99.5th percentile of |entries|.
    """
    if limit is None:
        limit = float(np.quantile(np.abs(matrices.numpy()), 0.995))
    for i, width in enumerate(widths):
        for j, remainder in enumerate(remainders):
            title = f"d = {width}, remainder {remainder}"
            interaction_matrix(matrices[i, j], axes[i, j], limit=limit, title=title)
    return axes


def save_summary(results: "Results") -> None:
    """Write `accuracy.png` and, if any are kept, `interactions.png` into the results folder."""
    import os

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def save(figure: Figure, name: str) -> None:
        FigureCanvasAgg(figure)
        partial = results.path / f"{name}.partial"
        figure.savefig(partial, format="png", dpi=100)
        os.replace(partial, results.path / name)

    p = results.config.p
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    ax = accuracy_against_width(results.table, figure.subplots(), p=p)
    ax.set_title(f"(a + b) mod {p}: errors against hidden width, {len(results.table)} models")
    save(figure, "accuracy.png")
    if not results.config.remainders:
        return
    widths, matrices = _some_widths(results)
    remainders = results.config.remainders[:5]
    size = (2.1 * len(remainders) + 0.9, 2.2 * len(widths) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(widths), len(remainders), squeeze=False)
    interaction_grid(matrices[:, : len(remainders)], widths, remainders, axes)
    figure.colorbar(axes[0, 0].images[0], ax=axes, shrink=0.6, label="Q, logit units")
    figure.suptitle(f"Interaction matrices Q of (a + b) mod {p}: xᵀQx is the remainder's logit")
    save(figure, "interactions.png")


def _some_widths(results: "Results") -> tuple[list[int], "Tensor"]:
    """Up to five widths from widest to the smallest perfect one, first seed."""
    import torch

    table, seed = results.table, results.config.seeds[0]
    mine = table[table["seed"] == seed]
    perfect = mine[mine["perfect"]]["d_hidden"]
    smallest = perfect.min() if len(perfect) else mine["d_hidden"].min()
    candidates = sorted(mine[mine["d_hidden"] >= smallest]["d_hidden"], reverse=True)
    steps = np.linspace(0, len(candidates) - 1, min(5, len(candidates)))
    widths = [int(candidates[round(i)]) for i in steps]
    return widths, torch.stack([results.interactions[d, seed] for d in widths])
