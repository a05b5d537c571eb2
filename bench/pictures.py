"""Draws measured contests: verdicts, speed-up by shape, the roofline, scaling."""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.measure.roofs import Roofs
from bench.verdicts import AT_THE_ROOF, DEFAULTS, Contest

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#707070"
VERDICTS = {"faster": BLUE, "within the spread": GREY, "slower": ORANGE}
# Okabe and Ito's colours, which colour-blind readers can distinguish; markers differ, too.
FAMILIES = {
    "layer forward and backward": "#0072B2",
    "layer forward": "#56B4E9",
    "mlp forward and backward": "#D55E00",
    "mlp forward": "#E69F00",
    "training steps": "#009E73",
    "sweep": "#CC79A7",
}
WAYS = {
    "ours, default": ("o", "black"),
    "recompute": ("o", "none"),
    "torch-ops": ("h", "none"),
    "eager": ("s", "none"),
    "compile": ("^", "none"),
    "max-autotune": ("v", "none"),
    "linear-binary": ("<", "none"),
    "vmap": ("D", "none"),
    "bmm": ("P", "none"),
    "notebook": ("X", "none"),
}
LINES = {
    "ours, default": (BLUE, "-"),
    "eager": (ORANGE, "--"),
    "vmap": ("#009E73", "--"),
    "bmm": ("#CC79A7", "-."),
}


def verdicts(found: list[Contest], path: Path) -> None:
    """Draw how many times faster than the best peer: one row per contest, with its floor."""
    found = sorted(found, key=lambda contest: _ROWS.index(_row(contest.group)))
    figure = Figure(figsize=(10.5, 0.27 * len(found) + 1.9), layout="constrained")
    ax = figure.subplots()
    for row, contest in enumerate(found):
        ratio, low, high = contest.ratio
        colour = VERDICTS[contest.verdict]
        ax.plot([low, high], [row, row], color=colour, lw=2)
        ax.plot(ratio, row, "o", color=colour)
        if contest.floor is not None:
            ax.plot(
                [max(high, ratio), contest.floor], [row, row], color="#d0d0d0", lw=0.8, zorder=0
            )
            ax.plot(contest.floor, row, marker="|", color="black", ms=11, mew=1.5)
        label = f"{ratio:.3g}×  {contest.best_peer.name}"
        ax.text(1.01, row, label, transform=ax.get_yaxis_transform(), va="center", fontsize=8)
    ax.axvline(1, color="black", lw=1)
    ax.set_xscale("log")
    ticks = [0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]
    ax.set_xticks(ticks, [f"{t:g}×" for t in ticks])
    ax.minorticks_off()
    ratios = [limit for c in found for limit in (c.ratio[0], c.floor or 1)]
    ax.set_xlim(min(ratios) / 1.5, max(ratios) * 1.3)
    ax.set_yticks(range(len(found)), [contest.group for contest in found], fontsize=8)
    ax.set_ylim(len(found) - 0.4, -0.6)
    ax.set_xlabel("times faster than the best peer (how much, and its name, at the right)")
    ax.grid(axis="x", alpha=0.3)
    marks = [_mark(name, color=colour, marker="o", lw=2) for name, colour in VERDICTS.items()]
    marks.append(_mark("at the roof: the floor", color="black", marker="|", ms=11, mew=1.5, lw=0))
    figure.legend(handles=marks, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle("The default way against the best peer; bars: quartiles")
    _save(figure, path)


def shapes(found: list[Contest], path: Path) -> None:
    """Draw speed relative to eager by shape: one panel per op and direction, one mark per way."""
    panels: defaultdict[str, dict[str, Contest]] = defaultdict(dict)
    for contest in found:
        task, _, shape = contest.group.partition(", M, d_in, d = ")
        if shape:
            panels[task][shape.strip("()")] = contest
    figure = Figure(figsize=(10, 6.6), layout="constrained")
    axes = figure.subplots(2, 2, sharey=True).flat
    least, most = 1.0, 1.0
    for ax, (task, by_shape) in zip(axes, panels.items(), strict=True):
        for i, contest in enumerate(by_shape.values()):
            eager = contest.ways["eager"].median
            names = [name for name in contest.ways if name != "eager"]
            for j, name in enumerate(names):
                way = contest.ways[name]
                at = i + (j - (len(names) - 1) / 2) * 0.16
                bar = [
                    [(eager / way.median - eager / way.q3)],
                    [eager / way.q1 - eager / way.median],
                ]
                marker, _ = WAYS[_shown(name)]
                ours = name in (*DEFAULTS, "recompute")
                colour = BLUE if ours else ORANGE
                ax.errorbar(
                    at, eager / way.median, yerr=bar, marker=marker, color=colour, lw=1,
                    mfc=colour if name in DEFAULTS else "white",
                )  # fmt: skip
        ax.axhline(1, color="black", lw=1)
        ax.set_title(task, fontsize=10)
        ax.set_xticks(range(len(by_shape)), list(by_shape), fontsize=8)
        ax.set_xlim(-0.5, len(by_shape) - 0.5)
        ax.set_yscale("log")
        ticks = [0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.25, 1.6, 2]
        ax.set_yticks(ticks, [f"{t:g}×" for t in ticks])
        ax.minorticks_off()
        ax.grid(axis="y", alpha=0.3)
        ax.set_xlabel("M, d_in, d", fontsize=9)
        every = [
            c.ways["eager"].median / way.median
            for c in by_shape.values()
            for way in c.ways.values()
        ]
        least, most = min(least, *every), max(most, *every)
        ax.set_ylim(least / 1.15, most * 1.15)
    figure.supylabel("times as fast as eager")
    drawn = {_shown(n) for by_shape in panels.values() for c in by_shape.values() for n in c.ways}
    marks = [
        _mark(
            name, lw=0, marker=marker,
            color=BLUE if name in ("ours, default", "recompute") else ORANGE,
            mfc=BLUE if name == "ours, default" else "white",
        )
        for name, (marker, _) in WAYS.items() if name in drawn - {"eager"}
    ]  # fmt: skip
    figure.legend(handles=marks, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    figure.suptitle("Speed-up by shape; bars: quartiles, cut off at the edge")
    _save(figure, path)


def roofline(found: list[Contest], roofs: Roofs, path: Path) -> None:
    """Draw FLOP/s by FLOP per byte, ours and the best peer's, below the measured roofs."""
    figure = Figure(figsize=(10, 6.6), layout="constrained")
    ax = figure.subplots()
    counted = [contest for contest in found if contest.floor is not None]
    at = {contest.group: _intensity(contest) for contest in counted}
    left, right = min(at.values()) / 1.6, max(at.values()) * 1.6
    copy, matmul = roofs.copy.best, roofs.matmul["fp32"].best
    ridge = matmul / copy
    if ridge > left:
        ax.plot([left, ridge], [left * copy / 1e9, matmul / 1e9], color="black", lw=1.5)
    ax.plot([max(ridge, left), right], [matmul / 1e9] * 2, color="black", lw=1.5)
    ax.text(
        right, matmul / 1e9 * 1.06, f"matmul, float32: {matmul / 1e9:.0f} GFLOP/s ",
        ha="right", fontsize=9,
    )  # fmt: skip
    ax.text(
        0.02, 0.97, f"copy: {copy / 1e9:.0f} GB/s, a roof left of {ridge:.1f} FLOP/byte",
        transform=ax.transAxes, va="top", fontsize=9,
    )  # fmt: skip
    for contest in counted:
        colour = FAMILIES[_family(contest.group)]
        flop, x = contest.ours.notes["flop"], at[contest.group]
        ours, peer = (flop / way.median / 1e9 for way in (contest.ours, contest.best_peer))
        ax.plot([x, x], [ours, peer], color=colour, lw=0.6, zorder=1)
        ax.plot(x, peer, "s", color=colour, mfc="white", ms=7, mew=1.2, zorder=2)
        ax.plot(x, ours, "o", color=colour, ms=7, zorder=3)
        width = re.search(r"steps of .*, (d=\d+)", contest.group)
        if width:  # every width has the same FLOP per byte, so labels tell them apart
            ax.text(x / 1.05, ours, width[1], ha="right", va="center", fontsize=8)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(left, right)
    ax.set_ylim(top=matmul / 1e9 * 1.8)
    ax.set_xlabel("FLOP of the algebra a byte that must be moved (FLOP/byte)")
    ax.set_ylabel("FLOP of the algebra a second (GFLOP/s)")
    ax.grid(alpha=0.3)
    marks = [
        _mark(family, marker="o", lw=0, color=colour)
        for family, colour in FAMILIES.items()
        if family in {_family(contest.group) for contest in counted}
    ]
    marks += [
        _mark("ours", marker="o", lw=0, color="black"),
        _mark("the best of the others", marker="s", lw=0, color="black", mfc="white"),
    ]
    figure.legend(handles=marks, loc="outside right upper", fontsize=9, frameon=False)
    ax.set_title("Under the roofs measured in the same run; a line joins ours and the best peer")
    _save(figure, path)


def scaling(found: list[Contest], path: Path) -> None:
    """Draw time by M, d, number of models and P, with the least time at the roofs."""
    panels: defaultdict[str, list[tuple[int, Contest]]] = defaultdict(list)
    for contest in found:
        notes = contest.ours.notes
        if "axis" in notes:
            panels[notes["axis"]].append((notes["at"], contest))
    about = {
        "M": "layer forward and backward, d_in = 128, d = 64",
        "d": "layer forward and backward, d_in = 128, M = 4096",
        "models": "2 training steps of all models, d = 16, P = 64",
        "P": "2 training steps of 8 models, d = 16",
    }
    axis = {"M": "rows M", "d": "d_hidden", "models": "number of models", "P": "modulus P"}
    figure = Figure(figsize=(10, 7), layout="constrained")
    drawn = set()
    for ax, (name, points) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        points.sort(key=lambda point: point[0])
        xs = [x for x, _ in points]
        for way in points[0][1].ways:
            colour, style = LINES[_shown(way)]
            drawn.add(_shown(way))
            ways = [contest.ways[way] for _, contest in points]
            medians = [1e3 * w.median for w in ways]
            low = [1e3 * (w.median - w.q1) for w in ways]
            high = [1e3 * (w.q3 - w.median) for w in ways]
            ax.errorbar(xs, medians, yerr=[low, high], color=colour, ls=style, marker="o", ms=4)
        floor = [1e3 * contest.ours.notes[AT_THE_ROOF] for _, contest in points]
        ax.plot(xs, floor, color="black", ls=":", lw=1.2)
        _log_axes(ax, xs)
        ax.set_title(about[name], fontsize=10)
        ax.set_xlabel(axis[name])
        ax.set_ylabel("milliseconds")
        ax.grid(alpha=0.3)
    marks = [
        _mark(name, color=colour, ls=style, marker="o", ms=4)
        for name, (colour, style) in LINES.items()
        if name in drawn
    ]
    marks.append(_mark("at the roof: the floor", color="black", ls=":"))
    figure.legend(handles=marks, loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    figure.suptitle("Scaling; bars: quartiles")
    _save(figure, path)


_ROWS = ("layer", "mlp", "training steps", "sweep", "interaction matrices", "start-up")


def _row(group: str) -> str:
    return next((start for start in _ROWS if group.startswith(start)), _family(group))


def _log_axes(ax: Axes, xs: list[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(xs, [f"{x:,}" for x in xs])
    ax.minorticks_off()


def _shown(way: str) -> str:
    return "ours, default" if way in DEFAULTS else way


def _family(group: str) -> str:
    if re.search(r"\d+ steps of", group):
        return "training steps"
    return next((family for family in FAMILIES if group.startswith(family)), "sweep")


def _intensity(contest: Contest) -> float:
    notes = contest.ours.notes
    intensity: float = notes["flop"] / notes["bytes"]
    return intensity


def _mark(label: str, **style: Any) -> Line2D:
    """Return one entry of a legend."""
    return Line2D([], [], label=label, **style)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=200)
