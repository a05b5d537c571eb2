"""Pictures of a sweep: each function draws data on an Axes and returns that Axes.

Colours: matplotlib's colour-blind-safe `tableau-colorblind10`, and for signed matrices `RdBu_r`
with white at true zero.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bilinear.errors import extra
from bilinear.reading.fourier import frequency_shares, serving_units
from bilinear.reading.similarity import functional_similarity
from bilinear.reading.spectra import eigenpairs, eigenvalues

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bilinear.results.folder import Folder
    from bilinear.results.study_results import StudyResults
    from bilinear.results.sweep_results import Results

# Widths at which the notebook's own run of P = 64 ended with every validation pair right (one
# unseeded model a width).
NOTEBOOK_PERFECT_WIDTHS = (38, 44, 45, 49, 51, 55, 59, 61, 62, 63)
_BLUE, _ORANGE, _GREY = "#006BA4", "#C85200", "#898989"


def accuracy_against_width(table: "pd.DataFrame", ax: "Axes", *, p: int | None = None) -> "Axes":
    """Share of all p² pairs wrong against width: median and spread over seeds, perfect models.

    The scale is logarithmic, but linear near 0, so that a single wrong pair can be seen. `p` 64
    adds the widths that were perfect in the notebook.
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
        label = "perfect in the notebook this follows (one run a width)"
        ax.scatter(NOTEBOOK_PERFECT_WIDTHS, y, marker="|", color=_GREY, label=label)
    ax.set_yscale("symlog", linthresh=1e-4)
    ax.set_ylim(-5e-5, 1.5)
    ax.set_yticks([0, 1e-4, 1e-3, 1e-2, 1e-1, 1], ["0", "0.0001", "0.001", "0.01", "0.1", "1"])
    ax.set(xlabel="hidden width d", ylabel="share of all pairs wrong")
    ax.grid(alpha=0.3)
    ax.legend(loc="upper right")
    return ax


def interaction_matrix(matrix: Tensor, ax: "Axes", *, limit: float, title: str = "") -> "Axes":
    """One interaction matrix (2p, 2p), white at zero, with lines between its a and b halves."""
    p = matrix.shape[-1] // 2
    ax.imshow(matrix.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    ax.axhline(p - 0.5, color="black", lw=0.5)
    ax.axvline(p - 0.5, color="black", lw=0.5)
    ax.set_xticks([p / 2, 3 * p / 2], ["a", "b"])
    ax.set_yticks([p / 2, 3 * p / 2], ["a", "b"])
    ax.tick_params(length=0)
    ax.set_title(title, fontsize=9)
    return ax


def functional_table(table: Tensor, ax: "Axes", *, limit: float, title: str = "") -> "Axes":
    """One output's logits on all pairs (p, p), row a and column b, white at zero."""
    _signed_image(ax, table.numpy(), limit, aspect="equal")
    ax.set(xlabel="b", ylabel="a")
    ax.set_title(title, fontsize=9)
    return ax


def interaction_grid(
    matrices: Tensor,
    widths: Sequence[int],
    remainders: Sequence[int],
    axes: np.ndarray,
    *,
    limit: float | None = None,
) -> np.ndarray:
    """Matrices (n_widths, n_remainders, 2p, 2p), one on each of `axes`, on one colour scale.

    `limit` is the value of full colour; None takes the 99.5th percentile of |entries|.
    """
    if limit is None:
        limit = float(np.quantile(np.abs(matrices.numpy()), 0.995))
    for i, width in enumerate(widths):
        for j, remainder in enumerate(remainders):
            title = f"d = {width}, remainder {remainder}"
            interaction_matrix(matrices[i, j], axes[i, j], limit=limit, title=title)
    return axes


def learning_curves(
    results: "Results", ax: "Axes", *, widths: Sequence[int], column: str = "val_acc"
) -> "Axes":
    """Validation accuracy against steps: one line per model, one colour per width.

    `column` is a loss or an accuracy of `experiment.record.Evaluation`. Losses are drawn on a
    logarithmic scale; accuracies as the share wrong, on one that is linear near 0.
    """
    from matplotlib import colormaps

    shades = colormaps["viridis"](np.linspace(0.9, 0, len(widths)))
    is_accuracy = column.endswith("acc")
    for d, shade in zip(widths, shades, strict=True):
        mine = [job for job in results.jobs if job.d_hidden == d]
        if not mine:
            raise ValueError(f"widths: expected some of the results', got {d}")
        for i, job in enumerate(mine):
            history = results.histories[job]
            y = 1 - history[column] if is_accuracy else history[column]
            label = f"d = {d}" if i == 0 else None
            ax.plot(history["step"], y, color=shade, lw=1, alpha=0.8, label=label)
    name = {"val": "validation", "train": "training", "full": "all"}[column.partition("_")[0]]
    if is_accuracy:
        ax.set_yscale("symlog", linthresh=1e-3)
        ax.set_ylim(-2e-4, 1.1)
        ax.set_yticks([0, 1e-3, 1e-2, 1e-1, 1], ["0", "0.001", "0.01", "0.1", "1"])
        ax.set_ylabel(f"share of {name} pairs wrong")
    else:
        ax.set_yscale("log")
        ax.set_ylabel(f"{name} loss [nats]")
    ax.set_xlabel("step")
    ax.set_title("Learning curves, a line a model", fontsize=10)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return ax


def eigenspectra(
    results: "Results",
    ax: "Axes",
    *,
    widths: Sequence[int],
    remainder: int = 0,
    seed: int | None = None,
    n_shown: int = 16,
    limit: float | None = None,
) -> "Axes":
    """Signed eigenvalues of one remainder's full Q: one row per width, strongest first.

    `limit` is the value of full colour; None takes the median over widths of the largest magnitude,
    because a few models with far larger eigenvalues would leave all others white. The first seed by
    default.
    """
    rows = np.full((len(widths), n_shown), np.nan)
    for i, d in enumerate(widths):
        values = eigenvalues(_state(results, d, seed), remainder, dtype=torch.float64)[:n_shown]
        rows[i, : len(values)] = values.numpy()
    if limit is None:
        limit = float(np.median(np.nanmax(np.abs(rows), axis=1))) or 1.0
    image = _signed_image(ax, rows, limit)
    ax.set_yticks(range(len(widths)), [str(d) for d in widths])
    ax.set_xticks(range(0, n_shown, 4), [str(k) for k in range(1, n_shown + 1, 4)])
    ax.set(xlabel="rank by magnitude", ylabel="hidden width d")
    ax.set_title(f"Eigenvalues of the full Q, remainder {remainder}", fontsize=10)
    ax.figure.colorbar(image, ax=ax, label="eigenvalue [logits]", extend="both")
    return ax


def eigenvectors(
    results: "Results",
    ax: "Axes",
    *,
    width: int,
    remainder: int = 0,
    seed: int | None = None,
    n_shown: int = 6,
    limit: float | None = None,
) -> "Axes":
    """Top eigenvectors of one remainder's full Q, one per row, with a line between a and b.

    Rows are labelled with their eigenvalues. The sign of an eigenvector is arbitrary: its entry of
    largest magnitude is shown positive. `limit` is the value of full colour; None takes 2/√(2p) at
    every width (the largest entry of a sinusoid over all 2p inputs is √2/√(2p)).
    """
    values, vectors = eigenpairs(_state(results, width, seed), remainder, dtype=torch.float64)
    rows = vectors[:, :n_shown].mT.numpy()
    peaks = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)
    p = results.config.p
    image = _signed_image(ax, rows * np.sign(peaks), limit or 2 / np.sqrt(2 * p))
    ax.axvline(p - 0.5, color="black", lw=1)
    ax.set_yticks(range(len(rows)), [f"λ = {value:.3g}" for value in values[: len(rows)]])
    step = max(1, p // 4)
    ticks = np.arange(0, p, step)
    ax.set_xticks([*ticks, *(ticks + p)], [str(t) for t in [*ticks, *ticks]])
    ax.set_xlabel(f"input: a = 0 … {p - 1}  |  b = 0 … {p - 1}")
    ax.set_title(f"Top eigenvectors of the full Q, d = {width}, remainder {remainder}", fontsize=10)
    ax.figure.colorbar(image, ax=ax, label="entry of the unit vector")
    return ax


def frequency_map(results: "Results", ax: "Axes", *, seed: int | None = None) -> "Axes":
    """Share of the interaction's power in the circuit of each frequency, frequency × width.

    Shares are those of `reading.fourier.frequency_shares`; full colour is at their 99.5th
    percentile. The first seed by default.
    """
    widths = _widths(results, seed)
    columns = [frequency_shares(_state(results, d, seed))[1:].numpy() for d in widths]
    shares = np.stack(columns, axis=1)
    full = float(np.quantile(shares, 0.995)) or 1.0
    image = ax.imshow(
        shares, cmap="Blues", vmin=0, vmax=full, origin="lower", aspect="auto", interpolation="none"
    )
    ax.set_yticks(*_some(range(1, len(shares) + 1)))
    ax.set_xticks(*_some(widths))
    ax.set(xlabel="hidden width d", ylabel="frequency k")
    ax.set_title("Frequencies in use, functional table of logits", fontsize=10)
    ax.figure.colorbar(image, ax=ax, label="share of the interaction's power", extend="max")
    return ax


def chain_of_units(results: "Results", ax: "Axes", *, seed: int | None = None) -> "Axes":
    """Hidden units of one narrowed chain, one per row, from the widest width to the narrowest.

    A row has one tick per width: its colour is the frequency that the unit serves most, its length
    is √(the unit's amplitude there / the model's largest), its angle is the phase. A row ends at
    the last width that has its unit; the units kept longest are at the bottom. The first seed by
    default.
    """
    from matplotlib import colormaps

    widths = _widths(results, seed)
    chosen = results.config.seeds[0] if seed is None else seed
    served: list[tuple[float, ...]] = []
    last: dict[int, int] = {}
    for place, d in enumerate(widths):
        model, names = _state(results, d, seed), results.units[d, chosen].tolist()
        units = serving_units(model)
        size = units.relative_amplitude.sqrt()
        columns = (units.frequency.tolist(), units.phase.tolist(), size.tolist())
        served += [(place, *one) for one in zip(names, *columns, strict=True)]
        last |= dict.fromkeys(names, place)
    rows = {name: y for y, name in enumerate(sorted(last, key=lambda n: (-last[n], n)))}
    x, name, frequency, phase, length = (np.array(column) for column in zip(*served, strict=True))
    y = np.array([rows[n] for n in name])
    shades = colormaps["tab20"](frequency * 7 % 20)
    step = (length * np.cos(phase), length * np.sin(phase))
    ax.quiver(
        x, y, *step, color=shades, pivot="mid", angles="uv", scale_units="x", scale=1.1,
        width=1.6, units="dots", headwidth=0, headlength=0, headaxislength=0,
    )  # fmt: skip
    ends = [(place, rows[n]) for n, place in last.items() if place < len(widths) - 1]
    if ends:
        end_x, end_y = np.array(ends).T
        ax.scatter(end_x, end_y, marker="|", s=14, color="black", lw=0.6)
    texts = {n: f"k = {k}" if size else "silent" for _, n, k, _, size in served}
    for n in sorted(rows, key=rows.__getitem__)[:12]:
        ax.annotate(texts[n], (last[n] + 0.6, rows[n]), va="center", fontsize=7)
    ax.set_xticks(*_some(widths))
    ax.set_yticks([])
    ax.set_xlim(-1, len(widths) + 3)
    ax.set(xlabel="hidden width d", ylabel="hidden units, those kept longest below")
    ax.set_title(
        "One model narrowed: a tick a unit; colour frequency, length amplitude, angle phase",
        fontsize=10,
    )
    return ax


def similarity_map(results: "Results", ax: "Axes", *, seed: int | None = None) -> "Axes":
    """Cosine between the logits of every two widths on all pairs, width × width, −1 … 1.

    Computed by `reading.similarity.functional_similarity`. The first seed by default.
    """
    widths = _widths(results, seed)
    similarity = functional_similarity(_state(results, d, seed) for d in widths)
    image = _signed_image(ax, similarity.numpy(), 1.0, aspect="equal")
    ax.set_xticks(*_some(widths))
    ax.set_yticks(*_some(widths))
    ax.set(xlabel="hidden width d", ylabel="hidden width d")
    ax.set_title("Functional similarity of widths", fontsize=10)
    ax.figure.colorbar(image, ax=ax, label="cosine of the logits on all pairs")
    return ax


def _signed_image(ax: "Axes", rows: np.ndarray, limit: float, *, aspect: Any = "auto") -> Any:
    """An image whose colours are white at zero and full at ±`limit`; NaN is grey."""
    from matplotlib import colormaps

    colours = colormaps["RdBu_r"].with_extremes(bad="#e6e6e6")
    return ax.imshow(
        rows, cmap=colours, vmin=-limit, vmax=limit, interpolation="none", aspect=aspect
    )


def _some(labels: Sequence[int]) -> tuple[list[int], list[str]]:
    """Positions and texts of at most nine of the labels, evenly spaced."""
    step = -(-len(labels) // 8)
    return list(range(0, len(labels), step)), [str(x) for x in labels[::step]]


def _widths(results: "Results", seed: int | None) -> list[int]:
    """Widths of the seed's models, the largest first; None is the first seed."""
    seed = results.config.seeds[0] if seed is None else seed
    widths = sorted((job.d_hidden for job in results.jobs if job.seed == seed), reverse=True)
    if not widths:
        raise ValueError(f"seed: expected one of the results' {results.config.seeds}, got {seed}")
    return widths


def _state(results: "Results", d_hidden: int, seed: int | None) -> dict[str, Tensor]:
    return results.models[d_hidden if seed is None else (d_hidden, seed)]


def save_summary(results: "Results") -> None:
    """Write `accuracy.png` into the results folder, and two more where there is what they show.

    `interactions.png` shows stored interaction matrices, `chain.png` the units of a narrowed
    sweep's first seed.
    """
    p = results.config.p
    figure = _figure(8, 4.5)
    ax = accuracy_against_width(results.table, figure.subplots(), p=p)
    ax.set_title(f"(a + b) mod {p}: errors against hidden width, {len(results.table)} models")
    _save(figure, results.folder, "accuracy.png")
    if results.config.narrow is not None:
        figure = _figure(8, 6)
        chain_of_units(results, figure.subplots())
        _save(figure, results.folder, "chain.png")
    if not results.config.remainders:
        return
    widths, matrices = _some_widths(results)
    remainders = results.config.remainders[:5]
    figure = _figure(2.1 * len(remainders) + 0.9, 2.2 * len(widths) + 0.6)
    axes = figure.subplots(len(widths), len(remainders), squeeze=False)
    interaction_grid(matrices[:, : len(remainders)], widths, remainders, axes)
    figure.colorbar(axes[0, 0].images[0], ax=axes, shrink=0.6, label="Q, logit units")
    figure.suptitle(f"Interaction matrices Q of (a + b) mod {p}: xᵀQx is the remainder's logit")
    _save(figure, results.folder, "interactions.png")


def _some_widths(results: "Results") -> tuple[list[int], Tensor]:
    """Up to five widths of the first seed, from the widest to the smallest perfect one."""
    table, seed = results.table, results.config.seeds[0]
    mine = table[table["seed"] == seed]
    perfect = mine[mine["perfect"]]["d_hidden"]
    smallest = perfect.min() if len(perfect) else mine["d_hidden"].min()
    candidates = sorted(mine[mine["d_hidden"] >= smallest]["d_hidden"], reverse=True)
    steps = np.linspace(0, len(candidates) - 1, min(5, len(candidates)))
    widths = [int(candidates[round(i)]) for i in steps]
    return widths, torch.stack([results.interactions[d, seed] for d in widths])


def accuracy_by_modulus(table: "pd.DataFrame", ax: "Axes") -> "Axes":
    """Median accuracy on all pairs against width, of a study's table: one line per P."""
    for p, group in table.groupby("p"):
        median = group.groupby("d_hidden")["full_acc"].median()
        ax.plot(median.index, median, marker=".", label=f"P = {p}")
    ax.set(xlabel="hidden width d", ylabel="median accuracy on all pairs")
    ax.grid(alpha=0.3)
    ax.legend(loc="lower right")
    return ax


def perfect_share_map(table: "pd.DataFrame", ax: "Axes") -> "Axes":
    """Share of perfect models of a study's table, train fraction × width; white if none trained.

    Models of several P, lr or decay count together, so filter the table first.
    """
    share = table.pivot_table(
        index="train_frac", columns="d_hidden", values="perfect", aggfunc="mean"
    )
    image = ax.imshow(
        share.to_numpy(dtype=float), vmin=0, vmax=1, cmap="viridis", aspect="auto", origin="lower"
    )
    ax.set_xticks(*_some([int(d) for d in share.columns]))
    ax.set_yticks(range(len(share)), [f"{fraction:g}" for fraction in share.index])
    ax.set(xlabel="hidden width d", ylabel="train fraction")
    ax.figure.colorbar(image, ax=ax, label="share of perfect seeds")
    return ax


def save_study(results: "StudyResults") -> None:
    """Write `accuracy.png` and a `perfect-p….png` for each P into a study's folder."""
    figure = _figure(8, 4.5)
    accuracy_by_modulus(results.table, figure.subplots())
    _save(figure, results.folder, "accuracy.png")
    for p, group in results.table.groupby("p"):
        figure = _figure(8, 4.5)
        perfect_share_map(group, figure.subplots())
        _save(figure, results.folder, f"perfect-p{p}.png")


def _figure(width: float, height: float) -> "Figure":
    with extra("sweep"):
        from matplotlib.figure import Figure
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: "Figure", folder: "Folder", name: str) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=200)
    folder.write(name, content.getvalue())
