"""What a sweep says at its start and its end."""

from typing import Any

from rich.console import Console
from rich.table import Table

from bilinear.config import SweepConfig
from bilinear.cost import sweep_cost
from bilinear.frontier import frontier
from bilinear.results import Results
from bilinear.study import AXES, Study, cell_name
from bilinear.study_results import StudyResults
from bilinear.training import Backend


def print_backend(console: Console, backend: Backend) -> None:
    """Say which backend runs and why: the first line of every run."""
    console.print(f"backend {backend.name}: {backend.reason}", soft_wrap=True)


def print_plan(console: Console, study: Study, out: str) -> None:
    """Say what would run and what it costs at most."""
    if len(study) > 1:
        _print_study_plan(console, study, out)
    else:
        _print_sweep_plan(console, study.cells[0], out)


def _print_sweep_plan(console: Console, config: SweepConfig, out: str) -> None:
    cost = sweep_cost(config)
    batch = config.batch_size or f"full ({config.n_train} pairs)"
    rows = {
        "task": f"(a + b) mod {config.p}, {config.n_train} of {config.p**2} pairs trained on",
        "models": f"{len(config.jobs)}: widths {_ranges(config.widths)}, "
        f"seeds {_ranges(config.seeds)}",
        "steps": f"at most {config.steps:,} each, {cost.steps:,} in all; batch {batch}",
        "learning rate": _schedule(config.lr),
        "weight decay": _schedule(config.weight_decay),
        "stop": f"{config.goal} accuracy 100 % at {config.hold} evaluations in a row, "
        f"one every {config.eval_every} steps",
        "FLOP": f"at most {cost.flop / 1e12:,.2f}·10¹²",
        "memory": f"at most {cost.memory_bytes / 1e6:,.1f} MB a model in training",
        "disk": f"about {cost.disk_bytes / 1e6:,.1f} MB at most, in {out}",
    }
    for name, value in rows.items():
        console.print(f"{name:>14}  {value}", soft_wrap=True)


def _print_study_plan(console: Console, study: Study, out: str) -> None:
    costs = [sweep_cost(cell) for cell in study]
    for cell in study:
        console.print(f"cell {cell_name(cell)}: {len(cell.jobs)} models", soft_wrap=True)
    console.print(
        f"{len(study)} cells, {sum(len(cell.jobs) for cell in study):,} models, at most "
        f"{sum(cost.flop for cost in costs) / 1e12:,.2f}·10¹² FLOP and "
        f"{sum(cost.disk_bytes for cost in costs) / 1e6:,.1f} MB, in {out}",
        soft_wrap=True,
    )


def study_summary(results: StudyResults) -> dict[str, Any]:
    """Return the frontier of each cell: all that the last JSON line says."""
    return {"results": str(results.folder), "complete": results.complete, **results.summary()}


def print_study_summary(console: Console, results: StudyResults) -> None:
    """Print a row a cell: its settings, and the smallest width that generalises perfectly."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("P", "train", "lr", "decay", "perfect", "smallest", "all from"):
        table.add_column(name, justify="right")
    for cell in results.summary()["cells"]:
        widths = (cell["smallest_perfect_width"], cell["all_perfect_from_width"])
        table.add_row(
            *(f"{cell[axis]:g}" for axis in AXES),
            f"{cell['perfect']}/{cell['models']}",
            *("—" if width is None else str(width) for width in widths),
        )
    console.print(table)
    console.print(f"results in {results.folder}", soft_wrap=True)
    if not results.complete:
        console.print(f"unfinished: {len(results.begun)} of {len(results.study)} cells begun")


def _schedule(schedule: Any) -> str:
    if schedule.shape == "constant":
        return f"{schedule.start:g}"
    return f"{schedule.start:g} → {schedule.end:g}, {schedule.shape}"


def _ranges(values: tuple[int, ...]) -> str:
    """`1…4, 8`: runs of neighbours shortened."""
    runs: list[list[int]] = []
    for v in sorted(values):
        if runs and v == runs[-1][1] + 1:
            runs[-1][1] = v
        else:
            runs.append([v, v])
    return ", ".join(str(a) if a == b else f"{a}…{b}" for a, b in runs)


def summary(results: Results) -> dict[str, Any]:
    """Return the frontier with what was swept: all that the last JSON line says."""
    return {
        "results": str(results.folder),
        "p": results.config.p,
        "train_frac": results.config.train_frac,
        "complete": results.complete,
        "backend": results.environment["backend"],
        **frontier(results.table),
    }


def _safe_row(widths: list[dict[str, Any]]) -> tuple[str, ...]:
    """One row for the widths from which on every model is perfect."""
    models = sum(w["models"] for w in widths)
    steps = [w["median_steps"] for w in widths]
    low = min(w["wilson_low"] for w in widths)
    return (
        f"{widths[-1]['d_hidden']}…{widths[0]['d_hidden']}",
        f"{models}/{models}",
        f"each {low:.2f} – 1.00",
        f"{min(steps):,.0f} – {max(steps):,.0f}",
        "1.0000",
        "1.0000",
    )


def print_summary(console: Console, results: Results) -> None:
    """Print a row a width and the answer: the smallest width that generalises perfectly."""
    found = summary(results)
    widths = found["widths"][::-1]
    safe = found["all_perfect_from_width"]
    safe_widths = [w for w in widths if safe is not None and w["d_hidden"] >= safe]
    table = Table(box=None, padding=(0, 2, 0, 0))
    headings = ("width", "perfect", "95 % interval", "median steps", "best acc", "median acc")
    for name in headings:
        table.add_column(name, justify="right")
    if len(safe_widths) > 1:
        table.add_row(*_safe_row(safe_widths))
        widths = widths[len(safe_widths) :]
    for w in widths:
        steps = w["median_steps"]
        table.add_row(
            str(w["d_hidden"]),
            f"{w['perfect']}/{w['models']}",
            f"{w['wilson_low']:.2f} – {w['wilson_high']:.2f}",
            "—" if steps is None else f"{steps:,.0f}",
            f"{w['best_full_acc']:.4f}",
            f"{w['median_full_acc']:.4f}",
        )
    console.print(table)
    p, smallest = results.config.p, found["smallest_perfect_width"]
    console.print(f"results in {results.folder}", soft_wrap=True)
    if not results.complete:
        console.print(f"unfinished: {len(results.jobs)} of {len(results.config.jobs)} models")
    if smallest is None:
        console.print(f"no model is right on all {p * p:,} pairs")
        return
    every = f"; from width {safe} up every model is" if safe is not None else ""
    console.print(
        f"[bold]smallest width with a model right on all {p * p:,} pairs: {smallest}[/bold]{every}",
        soft_wrap=True,
    )
