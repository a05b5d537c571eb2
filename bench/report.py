"""Writes tables and pictures of the committed results: `python -m bench.report`.

Reads bench/results and writes docs/performance.md, its pictures, and the table between two markers
in README.md.
"""

import json
from pathlib import Path
from statistics import median
from typing import Any

from bench import pictures
from bench.measure.environment import RESULTS
from bench.measure.roofs import Roofs
from bench.verdicts import Contest, contests

ROOT = RESULTS.parent.parent
PAGE = ROOT / "docs" / "performance.md"
PICTURES = ROOT / "docs" / "performance"
BEGIN, END = "<!-- bench.report -->", "<!-- end -->"
_NOTED = ("nominal GFLOP/s", "activation bytes saved, of eager's")


def _seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if value * scale >= 1:
            return f"{value * scale:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def _roofs(content: dict[str, Any]) -> Roofs:
    return Roofs.from_dict(content["machine_info"]["roofs"]["cpu"])


def _of(found: list[Contest], *starts: str) -> list[Contest]:
    return [contest for contest in found if contest.group.startswith(starts)]


def _timed(found: list[Contest]) -> list[Contest]:
    return [contest for contest in found if contest.is_timed and not contest.on_a_gpu]


def _task(contest: Contest) -> str:
    """Return what was timed: the group without the name of a scaling suite."""
    starts, _, task = contest.group.partition(": ")
    return task if starts.startswith("scaling") else contest.group


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


_HEADER, _RULE = "| | ours | best peer | times faster (quartiles) | |", "|---|---|---|---|---|"


def _row(contest: Contest) -> str:
    ratio, low, high = contest.ratio
    ours, peer = contest.ours, contest.best_peer
    return (
        f"| {_task(contest)} | {ours.name}, {_seconds(ours.median)} "
        f"| {peer.name}, {_seconds(peer.median)} "
        f"| {ratio:.2f} ({low:.2f}–{high:.2f}) | {contest.verdict} |"
    )


def _contest_table(found: list[Contest]) -> list[str]:
    lines = [f"{_HEADER} ours, of the roof | floor |", f"{_RULE}---|---|"]
    for contest in found:
        floor = "–" if contest.floor is None else f"{contest.floor:.3g}×"
        lines.append(f"{_row(contest)} {_percent(contest.ours.share)} | {floor} |")
    return lines


def _against_each(found: list[Contest]) -> list[str]:
    """Compare the default way with every peer, not only the best."""
    lines = ["| | ours | peer | times faster (quartiles) |", "|---|---|---|---|"]
    for contest in found:
        for peer in sorted(contest.peers, key=lambda way: way.median):
            ratio, low, high = contest.against(peer)
            lines.append(
                f"| {contest.group} | {_seconds(contest.ours.median)} "
                f"| {peer.name}, {_seconds(peer.median)} | {ratio:.1f} ({low:.1f}–{high:.1f}) |"
            )
    return lines


def _memory_table(found: list[Contest]) -> list[str]:
    lines = [
        "| | way | MB saved for backward | MB at the peak | of eager's: saved | peak |",
        "|---|---|---|---|---|---|",
    ]
    for contest in found:
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
    lines = ["| | way | median | quartiles | of the roof | noted |", "|---|---|---|---|---|---|"]
    for contest in found:
        for way in contest.ways.values():
            notes = ", ".join(f"{key} {way.notes[key]:.3g}" for key in _NOTED if key in way.notes)
            spread = f"{_seconds(way.q1)} – {_seconds(way.q3)}"
            lines.append(
                f"| {contest.group} | {way.name} | {_seconds(way.median)} | {spread} "
                f"| {_percent(way.share)} | {notes} |"
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


def _the_roofs(content: dict[str, Any]) -> str:
    roofs, clocks = _roofs(content), content["machine_info"]["clocks as found"]["cpu MHz"]
    mhz = f"{clocks['median']:,.0f} MHz as found" if clocks else "not reported by this system"
    return (
        "Measured at the beginning of the same run: a copy of tensors larger than the caches moves "
        f"{roofs.copy.best / 1e9:.1f} GB/s, counting bytes read and written (best of "
        f"{roofs.copy.rounds} rounds, median {roofs.copy.median / 1e9:.1f}); a float32 matmul "
        f"reaches {roofs.matmul['fp32'].best / 1e9:.0f} GFLOP/s (best of "
        f"{roofs.matmul['fp32'].rounds}, median {roofs.matmul['fp32'].median / 1e9:.0f}). "
        f"Clocks: {mhz}."
    )


def _gpu(results: Path, found: list[Contest]) -> list[str]:
    files = sorted(results.glob("gpu-*.json"))
    if not files and not found:
        return [
            "Not measured yet: `python -m bench.gpu` runs the measurements on a GPU. The adapters "
            "of peers from other projects (Liger-Kernel, quack; `pip install '.[peers]'`) were "
            "tested only with stand-ins for their packages."
        ]
    lines = ["| part | GPU | seconds | file |", "|---|---|---|---|"] if files else []
    for file in files:
        content = json.loads(file.read_text())
        gpu = content["environment"].get("gpu", "none")
        lines.append(f"| {file.stem[4:]} | {gpu} | {content['seconds']:.0f} | {file.name} |")
    return [*lines, "", *(_contest_table(found) if found else [])]


def _sweep(content: dict[str, Any]) -> list[str]:
    ours, notebook = median(content["fused_seconds"]), content["notebook_seconds_added_up"]
    spread = f"{min(content['fused_seconds']):.1f}–{max(content['fused_seconds']):.1f}"
    return [
        f"{_where(content)}.",
        "",
        f"`python sweep.py --fused`, from the command to the finished folder: {ours:.1f} s "
        f"({spread}). The notebook's loop takes "
        f"{content['notebook_mean_epoch_seconds'] * 1e3:.0f} ms an epoch; the "
        f"{content['notebook_epochs']:,} epochs in its log take {notebook:,.0f} s in all, "
        f"{content['ratio']:.0f} times as long.",
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


_HOW = (
    "Each row compares ways to do one thing. They are timed in turns on the same inputs, in a "
    "process of their own. Ours is faster or slower if the quartiles do not overlap. A roof is the "
    "best rate of this machine: FLOP/s of PyTorch's matmul, and bytes a second of a copy. The "
    "floor is the time at the nearer roof, for the FLOP of the algebra and the bytes of inputs and "
    "outputs, given as the number of times that it is faster than the best peer. Exponentials and "
    "what is saved for backward are not counted, so a call usually takes longer. It can be faster "
    "than the copy roof if data stay in the cache from one call to the next, and the compiled "
    "layer is faster than PyTorch's matmul where its share is above 100%. Quartiles of the layer's "
    "rows are over several processes, those of other rows over one."
)
_GIVEN_BACK = (
    "For the other tables malloc keeps freed memory (MALLOC_MMAP_MAX_=0 and a large "
    "MALLOC_TRIM_THRESHOLD_), as jemalloc, tcmalloc and a heap with free space do. With its "
    "default settings, glibc takes new memory from the system for every tensor of 32 MB or more, "
    "and for some smaller ones. The system clears new memory page by page, so ways that make "
    "fewer tensors gain speed:"
)


def _listed(found: list[Contest], verdict: str) -> str:
    groups = [_task(contest) for contest in found if contest.verdict == verdict]
    return "; ".join(groups) or "nothing measured"


def page(results: Path = RESULTS) -> str:
    """Return the text of docs/performance.md."""
    cpu = _read("cpu", results)
    everything = contests(cpu)
    timed = _timed(everything)
    scaled = _of(everything, "scaling")
    given_back = [contest for contest in everything if contest.gives_memory_back]
    sweep, latency = _read("sweep_against_notebook", results), _read("page_latency", results)
    judged = [*timed, *given_back, *scaled]
    lines = [
        "# Performance",
        "",
        "Written by `python -m bench.report` from bench/results; do not edit it.",
        "",
        "![times faster than the best peer, and the floor](performance/verdicts.png)",
        "",
        _HOW,
        "",
        f"**Not faster:** {_listed(judged, 'slower')}.",
        "",
        f"**As fast, within the spread:** {_listed(judged, 'within the spread')}.",
        "",
        "## On a GPU",
        "",
        *_gpu(results, [contest for contest in everything if contest.on_a_gpu]),
        "",
        "## On a CPU",
        "",
        f"{_where(cpu)}. {_the_roofs(cpu)}",
        "",
        *_contest_table(timed),
        "",
        "![FLOP/s under the roofs](performance/roofline.png)",
        "",
        "![speed-up by shape](performance/shapes.png)",
        "",
        "## With memory given back",
        "",
        _GIVEN_BACK,
        "",
        *_contest_table(given_back),
        "",
        "## The sweep, against each peer",
        "",
        "An epoch of four models; bench/suites/bench_sweep.py describes what each way does.",
        "",
        *_against_each(_of(timed, "an epoch")),
        "",
        "## Scaling",
        "",
        "![time against M, d, the number of models and P](performance/scaling.png)",
        "",
        *[_HEADER, _RULE, *map(_row, scaled)],
        "",
        "## Memory of forward and backward on a CPU",
        "",
        "Backward needs x, the weights and [L, R]; with `recompute`, only x and the weights.",
        "",
        *_memory_table(_of(everything, "memory")),
        "",
        "## The whole sweep, and the page",
        "",
        *_sweep(sweep),
        "",
        *_page(latency),
        "",
        "## All ways",
        "",
        *_all_ways(timed),
    ]
    return "\n".join(lines) + "\n"


def readme_table(results: Path = RESULTS) -> str:
    """Return the table for README.md, with the markers around it."""
    cpu = _read("cpu", results)
    shown = ("steps of", "forward and", "an epoch")
    timed = _timed(contests(cpu))
    found = [contest for contest in timed if any(part in contest.group for part in shown)]
    note = f"{_where(cpu)}. All results: [docs/performance.md](docs/performance.md)."
    return "\n".join([BEGIN, *_contest_table(found), "", note, END])


def with_table(readme: str, table: str) -> str:
    """Replace the table between the markers.

    Raises:
        ValueError: a marker is missing.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"README.md: expected {BEGIN} … {END}, got none")
    return before + table + after


def draw(results: Path, folder: Path) -> None:
    """Write the page's pictures into `folder`."""
    cpu = _read("cpu", results)
    everything = contests(cpu)
    timed = _timed(everything)
    folder.mkdir(exist_ok=True)
    pictures.verdicts(timed, folder / "verdicts.png")
    pictures.shapes(timed, folder / "shapes.png")
    pictures.roofline(timed, _roofs(cpu), folder / "roofline.png")
    pictures.scaling(everything, folder / "scaling.png")


def main() -> None:
    """Write the page, its pictures and the README's table."""
    draw(RESULTS, PICTURES)
    PAGE.write_text(page())
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text(), readme_table()))
    print(f"wrote {PAGE}, {PICTURES} and the table in {readme}")


if __name__ == "__main__":
    main()
