"""What a sweep prints at its start and its end: forecast, expected time, summary."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from bilinear.cli.durations import duration
from bilinear.cli.parser import program
from bilinear.cli.progress import SweepState
from bilinear.cli.tables import print_table
from bilinear.experiment.cost import sweep_cost
from bilinear.experiment.narrowing import Narrowing
from bilinear.experiment.study import AXES, Study
from bilinear.results.frontier import frontier
from bilinear.results.study_results import StudyResults
from bilinear.results.sweep_results import Results
from bilinear.training.backend import Backend
from bilinear.training.forecast.calibration import Calibration, calibrate
from bilinear.training.forecast.estimate import Estimate, Times, estimate

# Numbers of devices for which a dry run gives the time of training.
_DEVICES = (1, 8, 64)
# In a shorter run much of the time is start-up, which the estimate leaves out.
_WORTH_SECONDS = 5.0


def print_backend(console: Console, backend: Backend) -> None:
    """Print which backend trains and why: the first line of every run."""
    console.print(f"backend {backend.name}: {backend.reason}", soft_wrap=True)


def print_forecast(
    console: Console,
    study: Study,
    out: str,
    backend: Backend,
    calibration: Calibration | None,
) -> None:
    """Print what would run, its cost at most, and its time by the calibration."""
    rows = _what(study) | _how(study) | _cost(study, out, backend.at_once)
    for name, value in rows.items():
        console.print(f"{name:>14}  {value}", soft_wrap=True)
    if calibration is None:
        console.print(f"{'time':>14}  unknown: no step could be measured in the time that may take")
        return
    _print_time(console, estimate(calibration, study.cells), calibration)


def forecast(
    study: Study, out: str, backend: Backend, calibration: Calibration | None
) -> dict[str, Any]:
    """Return what `print_forecast` prints, seconds by number of devices."""
    costs = [sweep_cost(cell) for cell in study]
    times = {} if calibration is None else _times(estimate(calibration, study.cells), calibration)
    return {
        "results": out,
        "backend": backend.name,
        "models": sum(len(cell.widths) * len(cell.seeds) for cell in study),
        "steps_at_most": sum(cost.steps for cost in costs),
        "flop_at_most": sum(cost.flop for cost in costs),
        "disk_bytes_at_most": sum(cost.disk_bytes for cost in costs),
        "times": [
            {"devices": devices, "about_seconds": about, "at_most_seconds": at_most}
            for devices, (about, at_most) in times.items()
        ],
    }


def _times(found: Estimate, rate: Calibration) -> dict[int, Times]:
    """Times of training on each of _DEVICES and on as many devices as there are."""
    return {n: found.times(n * rate.at_once) for n in sorted({*_DEVICES, rate.devices})}


def print_expectation(console: Console, study: Study, calibration: Calibration | None) -> None:
    """Print before a run how long it should take, if an earlier run measured the rate."""
    if calibration is None:
        return
    lanes = calibration.at_once * calibration.devices
    about, most = estimate(calibration, study.cells).times(lanes)
    if most < _WORTH_SECONDS:
        return
    said = f"at most {duration(most)}"
    console.print(said if about is None else f"about {duration(about)} ({said})")


def _print_time(console: Console, found: Estimate, rate: Calibration) -> None:
    place = " " * (16 if console.width >= 60 else 2)
    one = f"{rate.at_once} models at once" if rate.at_once > 1 else "one model at a time"
    console.print(f"{'time':>14}  of training; a device is one like this: {one},", soft_wrap=True)
    console.print(f"{place}{rate.processor}; rate {rate.source}", soft_wrap=True)
    rows = []
    for devices, (about, at_most) in _times(found, rate).items():
        said = "—" if about is None else duration(about)
        row = {"devices": str(devices), "about": said, "at most": duration(at_most)}
        now = {"": "all there are now" if devices == rate.devices else ""}
        rows.append(row | now if rate.devices > 1 else row)
    print_table(console, rows, first_to_go=("",), indent=len(place))
    longest = f"{place}at most: all use all steps, the longest {duration(found.most.longest)}"
    if about is None:
        console.print(f"{longest}; no runs like this were counted, to say more", soft_wrap=True)
        return
    console.print(longest, soft_wrap=True)
    stops = "about: they stop where models of the default recipe did"
    console.print(f"{place}{stops}", soft_wrap=True)


def print_hindsight(console: Console, backend: Backend, ran: SweepState, seconds: float) -> None:
    """Print how far the estimate was off for the models this run trained, unless it was short."""
    if not any(ran.trained) or seconds < _WORTH_SECONDS:
        return
    if rate := calibrate(backend, ran.cells):  # measured here if no earlier run did
        times = estimate(rate, ran.cells, ran.trained).times(rate.at_once * rate.devices)
        console.print(comparison(times, seconds), soft_wrap=True)


def comparison(times: Times, seconds: float) -> str:
    """Return in one line how far an estimate was off."""
    most, took = f"at most {duration(times.at_most)}", f"took {duration(seconds)}"
    if times.about is None:
        return f"estimated {most}, {took}: {seconds / times.at_most:.0%} of it"
    off = seconds / times.about - 1
    more = "more" if off > 0 else "less"
    return f"estimated about {duration(times.about)} ({most}), {took}: {abs(off):.0%} {more}"


def _what(study: Study) -> dict[str, str]:
    cells = study.cells
    models = f"{sum(len(cell.widths) * len(cell.seeds) for cell in cells):,}"
    widths = _ranges(tuple({d for cell in cells for d in cell.widths}))
    of = f"widths {widths}, seeds {_ranges(cells[0].seeds)}"
    if len(cells) == 1:
        (one,) = cells
        pairs = f"{one.n_train} of {one.p**2} pairs trained on"
        return {"task": f"(a + b) mod {one.p}, {pairs}", "models": f"{models}: {of}"}
    fractions = ", ".join(f"{f:g}" for f in sorted({cell.train_frac for cell in cells}))
    moduli = _ranges(tuple({cell.p for cell in cells}))
    return {
        "task": f"(a + b) mod P, P {moduli}; share of pairs trained on {fractions}",
        "study": f"{len(cells)} cells, {models} models: {of}",
    }


def _how(study: Study) -> dict[str, str]:
    cells, first = study.cells, study.cells[0]
    steps = sum(sweep_cost(cell).steps for cell in cells)
    each = _alternatives([f"{cell.steps:,}" for cell in cells])
    batches = [f"{cell.batch_size or f'full ({cell.n_train} pairs)'}" for cell in cells]
    narrowing = {} if first.narrow is None else {"narrowing": _chain(first.narrow)}
    one = "each start" if narrowing else "each"
    return narrowing | {
        "steps": f"at most {each} {one}, {steps:,} in all; batch {_alternatives(batches)}",
        "learning rate": _alternatives([_schedule(cell.lr) for cell in cells]),
        "weight decay": _alternatives([_schedule(cell.weight_decay) for cell in cells]),
        "stop": f"{first.goal} accuracy 100 % at {first.hold} evaluations in a row, "
        f"one every {_alternatives([str(cell.eval_every) for cell in cells])} steps",
    }


def _chain(narrow: Narrowing) -> str:
    order = {"circuit": "of the weakest circuit", "random": "any"}
    goes = order.get(narrow.drop, f"of the least {narrow.drop}")
    return (
        f"each width from the next wider one's weights less a unit, the one {goes}; "
        f"up to {narrow.tries} ways, {narrow.redraws} units drawn anew"
    )


def _cost(study: Study, out: str, at_once: int) -> dict[str, str]:
    costs = [sweep_cost(cell) for cell in study]
    flop, disk = sum(cost.flop for cost in costs), sum(cost.disk_bytes for cost in costs)
    memory = max(cost.memory_bytes for cost in costs)
    return {
        "FLOP": f"at most {flop / 1e12:,.2f}·10¹²",
        "memory": f"at most {memory / 1e3:,.0f} kB a model in training, {at_once} at once",
        "disk": f"about {disk / 1e6:,.1f} MB at most, in {out}",
    }


def _alternatives(values: list[str]) -> str:
    return " or ".join(dict.fromkeys(values))


def summary(results: Results | StudyResults) -> dict[str, Any]:
    """Return the frontier, for a study that of each cell: the line that `--json` prints."""
    if isinstance(results, StudyResults):
        return {
            "results": str(results.folder),
            "complete": results.complete,
            **results.summary(),
        }
    return {
        "results": str(results.folder),
        "p": results.config.p,
        "train_frac": results.config.train_frac,
        "complete": results.complete,
        "backend": results.environment["backend"],
        **frontier(results.table),
    }


def print_summary(console: Console, results: Results | StudyResults) -> None:
    """Print a row for each width, or cell of a study, and the smallest perfect width."""
    found = summary(results)
    if isinstance(results, StudyResults):
        answer = _print_cells(console, found["cells"])
        there = f"{len(results.begun)} of {len(results.study)} cells begun"
    else:
        answer = _print_widths(console, found)
        there = f"{len(results.jobs)} of {len(results.config.jobs)} models"
    console.print(f"results in {results.folder}", soft_wrap=True)
    console.print(f"next: {program()} view {results.folder}", soft_wrap=True)
    if not results.complete:
        console.print(f"unfinished: {there}")
    console.print(answer, soft_wrap=True)


_AXIS_HEADINGS = dict(zip(AXES, ("P", "train", "lr", "decay"), strict=True))


def _print_cells(console: Console, cells: list[dict[str, Any]]) -> Text:
    """Print a row for each cell, without settings that all cells share; return the answer."""
    values = {axis: dict.fromkeys(f"{cell[axis]:g}" for cell in cells) for axis in AXES}
    varied = [axis for axis in AXES if len(values[axis]) > 1]
    rows = [
        {_AXIS_HEADINGS[axis]: f"{cell[axis]:g}" for axis in varied}
        | {
            "perfect": f"{cell['perfect']}/{cell['models']}",
            "smallest": _width(cell["smallest_perfect_width"]),
            "all from": _width(cell["all_perfect_from_width"]),
        }
        for cell in cells
    ]
    shared = [
        f"{_AXIS_HEADINGS[axis]} {next(iter(values[axis]), '')}"
        for axis in AXES
        if axis not in varied
    ]
    if shared:
        console.print(f"all cells: {', '.join(shared)}", soft_wrap=True)
    print_table(console, rows, first_to_go=("all from",))
    return Text(_study_answer(cells, varied), style="bold")


def _study_answer(cells: Sequence[dict[str, Any]], varied: Sequence[str]) -> str:
    """Return a sentence: the smallest width with a perfect model, and the cells that have it."""
    found = [cell for cell in cells if cell["smallest_perfect_width"] is not None]
    if not found:
        return "no cell has a model right on all its pairs"
    least = min(cell["smallest_perfect_width"] for cell in found)
    best = [cell for cell in found if cell["smallest_perfect_width"] == least]
    where = [
        ", ".join(f"{_AXIS_HEADINGS[axis]} {cell[axis]:g}" for axis in varied) for cell in best
    ]
    some = "; ".join(where[:3]) + (f" and {len(where) - 3} more cells" if len(where) > 3 else "")
    without = len(cells) - len(found)
    none = f"; {without} of {len(cells)} cells have none" if without else ""
    return f"smallest width with a model right on all pairs: {least} ({some}){none}"


def _width(width: int | None) -> str:
    return "—" if width is None else str(width)


def _schedule(schedule: Any) -> str:
    if schedule.shape == "constant":
        return f"{schedule.start:g}"
    return f"{schedule.start:g} → {schedule.end:g}, {schedule.shape}"


def _ranges(values: tuple[int, ...]) -> str:
    """`1…4, 8` for 1, 2, 3, 4 and 8."""
    runs: list[list[int]] = []
    for v in sorted(values):
        if runs and v == runs[-1][1] + 1:
            runs[-1][1] = v
        else:
            runs.append([v, v])
    return ", ".join(str(a) if a == b else f"{a}…{b}" for a, b in runs)


_FIRST_TO_GO = ("median acc", "best acc", "95 % interval", "median steps")


def _safe_row(widths: list[dict[str, Any]]) -> dict[str, str]:
    """One row for the widths from which up every model is perfect."""
    models = sum(w["models"] for w in widths)
    steps = [w["median_steps"] for w in widths]
    return {
        "width": f"{widths[-1]['d_hidden']}…{widths[0]['d_hidden']}",
        "perfect": f"{models}/{models}",
        "95 % interval": f"each {min(w['wilson_low'] for w in widths):.2f} – 1.00",
        "median steps": f"{min(steps):,.0f} – {max(steps):,.0f}",
        "best acc": "1.0000",
        "median acc": "1.0000",
    }


def _width_row(w: dict[str, Any]) -> dict[str, str]:
    steps = w["median_steps"]
    return {
        "width": str(w["d_hidden"]),
        "perfect": f"{w['perfect']}/{w['models']}",
        "95 % interval": f"{w['wilson_low']:.2f} – {w['wilson_high']:.2f}",
        "median steps": "—" if steps is None else f"{steps:,.0f}",
        "best acc": f"{w['best_full_acc']:.4f}",
        "median acc": f"{w['median_full_acc']:.4f}",
    }


def _print_widths(console: Console, found: dict[str, Any]) -> Text:
    """Print a row for each width, widths without a failure in one; return the answer."""
    widths = found["widths"][::-1]
    safe = found["all_perfect_from_width"]
    safe_widths = [w for w in widths if safe is not None and w["d_hidden"] >= safe]
    rows = [_safe_row(safe_widths)] if len(safe_widths) > 1 else []
    rows += [_width_row(w) for w in widths[len(safe_widths) if rows else 0 :]]
    print_table(console, rows, first_to_go=_FIRST_TO_GO)
    pairs, smallest = f"{found['p'] ** 2:,} pairs", found["smallest_perfect_width"]
    if smallest is None:
        return Text(f"no model is right on all {pairs}")
    every = f"; from width {safe} up every model is" if safe is not None else ""
    return Text.assemble(
        (f"smallest width with a model right on all {pairs}: {smallest}", "bold"), every
    )
