"""What was measured, as tables and a picture: `python -m bench.report`.

Reads bench/results and writes docs/performance.md, its picture, and the table between the markers
in README.md. Nothing in them is typed by hand.
"""

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.environment import RESULTS

ROOT = RESULTS.parent.parent
PAGE = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "performance.png"
BEGIN, END = "<!-- bench.report -->", "<!-- end -->"
# What users get by default; other ways of ours are shown, but decide nothing.
DEFAULTS = ("fused", "compiled", "span")
OTHER_WAYS = ("recompute", "torch-ops")
PEERS = ("eager", "compile", "vmap", "bmm", "dense", "notebook")
COLOURS = {"faster": "#006BA4", "within the spread": "#898989", "slower": "#C85200"}


_WAY = re.compile("|".join(DEFAULTS + OTHER_WAYS + PEERS))


@dataclass(frozen=True)
class Contestant:
    """One way to do something: seconds, with quartiles."""

    name: str
    median: float
    q1: float
    q3: float
    notes: dict[str, Any]


@dataclass(frozen=True)
class Contest:
    """Ways to do one thing, timed in turns."""

    group: str
    ways: dict[str, Contestant]

    @property
    def ours(self) -> Contestant:
        """The default way."""
        return next(self.ways[name] for name in DEFAULTS if name in self.ways)

    @property
    def best_peer(self) -> Contestant:
        """The fastest of what else one would use."""
        peers = [w for n, w in self.ways.items() if n not in DEFAULTS + OTHER_WAYS]
        return min(peers, key=lambda way: way.median)

    @property
    def ratio(self) -> tuple[float, float, float]:
        """Times faster than the best peer: by medians, and between the quartiles' extremes."""
        ours, peer = self.ours, self.best_peer
        return peer.median / ours.median, peer.q1 / ours.q3, peer.q3 / ours.q1

    @property
    def verdict(self) -> str:
        """Whether the quartiles overlap."""
        _, low, high = self.ratio
        return "faster" if low > 1 else "slower" if high < 1 else "within the spread"


def contests(content: dict[str, Any]) -> list[Contest]:
    """Contests of a pytest-benchmark file that have a default way and a peer."""
    groups: defaultdict[str, dict[str, Contestant]] = defaultdict(dict)
    for one in content["benchmarks"]:
        found = _WAY.search(one["name"])
        if found is None or one["group"] is None:
            continue
        stats = one["stats"]
        groups[one["group"]][found[0]] = Contestant(
            found[0], stats["median"], stats["q1"], stats["q3"], one["extra_info"]
        )
    return [
        Contest(group, ways)
        for group, ways in groups.items()
        if set(ways) & set(DEFAULTS) and set(ways) & set(PEERS)
    ]


def _timed(found: list[Contest]) -> list[Contest]:
    return [contest for contest in found if not contest.group.startswith("memory")]


def draw(found: list[Contest], path: Path) -> None:
    """Times faster than the best peer, a row a contest."""
    figure = Figure(figsize=(9, 0.27 * len(found) + 1.3), layout="constrained")
    ax = figure.subplots()
    for row, contest in enumerate(found):
        ratio, low, high = contest.ratio
        colour = COLOURS[contest.verdict]
        ax.plot([low, high], [row, row], color=colour, lw=2)
        ax.plot(ratio, row, "o", color=colour)
        ax.annotate(
            f"  {ratio:.2f}  ({contest.best_peer.name})",
            (min(high, 16), row),
            va="bottom" if high > 16 else "center",
            fontsize=7,
        )
    ax.axvline(1, color="black", lw=1)
    ax.set_xscale("log")
    ticks = [0.5, 1, 2, 5, 10]
    ax.set_xticks(ticks, [f"{t:g}×" for t in ticks])
    ax.set_xlim(0.4, 40)
    ax.set_yticks(range(len(found)), [contest.group for contest in found], fontsize=8)
    ax.invert_yaxis()
    ax.set_xlabel("times faster than the best peer (its name at the right); bars: quartiles")
    figure.suptitle("The default way against the best peer: blue wins, grey ties, orange loses")
    ax.grid(axis="x", alpha=0.3)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110)


def _seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if value * scale >= 1:
            return f"{value * scale:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def _contest_table(found: list[Contest]) -> list[str]:
    lines = ["| | ours | best peer | times faster (quartiles) | |", "|---|---|---|---|---|"]
    for contest in found:
        ratio, low, high = contest.ratio
        ours, peer = contest.ours, contest.best_peer
        lines.append(
            f"| {contest.group} | {ours.name}, {_seconds(ours.median)} "
            f"| {peer.name}, {_seconds(peer.median)} "
            f"| {ratio:.2f} ({low:.2f}–{high:.2f}) | {contest.verdict} |"
        )
    return lines


def _memory_table(found: list[Contest]) -> list[str]:
    lines = [
        "| | way | MB saved for backward | MB at the peak | of eager's: saved | peak |",
        "|---|---|---|---|---|---|",
    ]
    for contest in found:
        if not contest.group.startswith("memory"):
            continue
        eager = contest.ways["eager"].notes
        for way in contest.ways.values():
            saved, peak = way.notes["bytes saved"], way.notes["peak bytes"]
            lines.append(
                f"| {contest.group.removeprefix('memory, ')} | {way.name} "
                f"| {saved / 1e6:.2f} | {peak / 1e6:.2f} "
                f"| {saved / eager['bytes saved']:.2f} | {peak / eager['peak bytes']:.2f} |"
            )
    return lines


def _all_ways(found: list[Contest]) -> list[str]:
    lines = ["| | way | median | quartiles | noted |", "|---|---|---|---|---|"]
    for contest in found:
        for way in contest.ways.values():
            notes = ", ".join(
                f"{key} {value:.3g}"
                for key, value in way.notes.items()
                if not key.startswith("times faster")
            )
            spread = f"{_seconds(way.q1)} – {_seconds(way.q3)}"
            lines.append(
                f"| {contest.group} | {way.name} | {_seconds(way.median)} | {spread} | {notes} |"
            )
    return lines


def _read(name: str, results: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((results / f"{name}.json").read_text())
    return content


def _where(content: dict[str, Any]) -> str:
    info = content.get("machine_info") or content["environment"]
    return (
        f"{info['cores']} cores of {info['device']}, PyTorch {info['torch']}, "
        f"Python {info['python']}, commit {info['commit']}"
    )


def _gpu(results: Path) -> list[str]:
    files = sorted(results.glob("gpu-*.json"))
    if not files:
        return ["Not measured yet: `python -m bench.gpu` is what a visit to a GPU runs."]
    lines = ["| part | GPU | seconds | file |", "|---|---|---|---|"]
    for file in files:
        content = json.loads(file.read_text())
        gpu = content["environment"].get("gpu", "none")
        lines.append(f"| {file.stem[4:]} | {gpu} | {content['seconds']:.0f} | {file.name} |")
    return lines


def _sweep(content: dict[str, Any]) -> list[str]:
    ours, notebook = median(content["fused_seconds"]), content["notebook_seconds_added_up"]
    spread = f"{min(content['fused_seconds']):.1f}–{max(content['fused_seconds']):.1f}"
    return [
        f"{_where(content)}.",
        "",
        f"`python sweep.py --fused`, from the command to the finished folder: {ours:.1f} s "
        f"({spread}). The notebook's loop, {content['notebook_mean_epoch_seconds'] * 1e3:.0f} ms "
        f"an epoch and {content['notebook_epochs']:,} epochs by its own log: {notebook:,.0f} s "
        f"added up, {content['ratio']:.0f} times as long.",
    ]


def _page(content: dict[str, Any]) -> list[str]:
    lines = [
        f"The page of {content['widths']} widths × {content['remainders']} remainders "
        f"({content['bytes'] / 1e6:.1f} MB) in headless Chromium {content['chromium']}, in ms:",
        "",
        "| | median | 95 % | worst |",
        "|---|---|---|---|",
    ]
    for name, key in (
        ("first paint", "first_paint_ms"),
        ("slider moved, until drawn", "slider_drawn_ms"),
        ("slider moved, until shown", "slider_shown_ms"),
    ):
        row = content[key]
        lines.append(f"| {name} | {row['median']} | {row['p95']} | {row['worst']} |")
    return lines


def page(results: Path = RESULTS) -> str:
    """Text of docs/performance.md."""
    cpu = _read("cpu", results)
    everything = contests(cpu)
    timed = _timed(everything)
    sweep, latency = _read("sweep_against_notebook", results), _read("page_latency", results)
    slower = [contest.group for contest in timed if contest.verdict == "slower"]
    lines = [
        "# Performance",
        "",
        "Made by `python -m bench.report` from bench/results; not to be edited.",
        "",
        "![times faster than the best peer](performance.png)",
        "",
        "Contestants take turns in one process on the same inputs. A contest is won or lost when "
        "the quartiles do not overlap.",
        "",
        f"**Not faster:** {'; '.join(slower) or 'nothing measured'}.",
        "",
        "## On a GPU",
        "",
        *_gpu(results),
        "",
        "## On a CPU",
        "",
        f"{_where(cpu)}.",
        "",
        *_contest_table(timed),
        "",
        "## Memory of forward and backward on a CPU",
        "",
        "Small calls run torch's own composition, saving what it saves; `recompute` saves x alone.",
        "",
        *_memory_table(everything),
        "",
        "## The whole sweep, and the page",
        "",
        *_sweep(sweep),
        "",
        *_page(latency),
        "",
        "## Every way",
        "",
        *_all_ways(timed),
    ]
    return "\n".join(lines) + "\n"


def readme_table(results: Path = RESULTS) -> str:
    """What stands between the markers of README.md."""
    cpu = _read("cpu", results)
    found = [c for c in contests(cpu) if "steps of" in c.group or "forward and" in c.group]
    note = f"{_where(cpu)}. All of it: [docs/performance.md](docs/performance.md)."
    return "\n".join([BEGIN, *_contest_table(found), "", note, END])


def with_table(readme: str, table: str) -> str:
    """Put the table between the markers; raises ValueError if they are not there."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"README.md: expected {BEGIN} … {END}, got none")
    return before + table + after


def main() -> None:
    """Write the page, its picture and the README's table."""
    draw(_timed(contests(_read("cpu", RESULTS))), PICTURE)
    PAGE.write_text(page())
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text(), readme_table()))
    print(f"wrote {PAGE}, {PICTURE} and the table in {readme}")


if __name__ == "__main__":
    main()
