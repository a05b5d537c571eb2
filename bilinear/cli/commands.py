"""The commands: a sweep, and `runs`, `show`, `check`, `view` and `export` for its results."""

import argparse
import io
import json
import os
import sys
import time
import webbrowser
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bilinear.cli.numbers import INTEGERS, PATH, WHOLE
from bilinear.cli.options import COMMANDS, build_parser, study_from
from bilinear.cli.parser import Parser, naming_options, program
from bilinear.cli.signals import Stopped, stoppable
from bilinear.errors import ConfigError, EngineError, ResultsError
from bilinear.experiment.study import Study

if TYPE_CHECKING:
    from bilinear.results.study_results import StudyResults
    from bilinear.results.sweep_results import Results

_NEEDED = "the command needs pip install 'bilinear[sweep]'"

_NO_MEMORY = "not enough memory; fewer or narrower models, or a smaller P, need less"

# The middle of a longer message is left out: an argument can be of any length.
_LONGEST = 2000

# Options that say where to train, which may differ from one run in a folder to the next.
_WHERE = {"device", "engine", "ray_address"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code.

    0; 1 if `check` finds damage; 2 for bad input; 130 or 143 when stopped by SIGINT or SIGTERM.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a path's bytes need not be text
            stream.reconfigure(errors="backslashreplace")
    try:
        if argv and argv[0] in COMMANDS:
            return _RUN[argv[0]](argv[1:])
        return _sweep(argv)
    except (ConfigError, EngineError, ResultsError) as error:
        return _fail(naming_options(str(error)))
    except ImportError as error:
        said = str(error)
        return _fail(said if "pip install" in said else f"{said}; {_NEEDED}")
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        hint = "; --out names another folder" if isinstance(error, PermissionError) else ""
        return _fail(f"{error.strerror or error}{where}{hint}")
    except MemoryError:
        return _fail(_NO_MEMORY)
    except RuntimeError as error:  # what torch raises where memory runs out
        if "allocate memory" in str(error) or "out of memory" in str(error):
            return _fail(_NO_MEMORY)
        raise


def _fail(message: str) -> int:
    line = " ".join(message.split())
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 2 :]}"
    print(f"{program().split()[-1]}: {line}", file=sys.stderr)
    return 2


def _sweep(argv: Sequence[str]) -> int:
    args = build_parser().parse_args(argv)
    study = _study_to_go_on(args) or study_from(args)

    from rich.console import Console

    from bilinear.cli import report
    from bilinear.training.engine import choose_engine
    from bilinear.training.forecast.calibration import calibrate

    backend = choose_engine(
        study.cells,
        engine=args.engine,
        fused=args.fused,
        device=args.device,
        ray_address=args.ray_address,
    )
    console = Console(highlight=False, markup=False, stderr=args.json, quiet=args.quiet)
    report.print_backend(console, backend)
    out = _out_folder(args, study)
    if args.dry_run:
        about = (study, out, backend, calibrate(backend, study.cells))
        report.print_forecast(console, *about)
        if args.json:
            print(json.dumps(report.forecast(*about)))
        return 0
    try:
        _run(args, study, backend, out, console)
    except Stopped as stopped:
        print(
            f"{program().split()[-1]}: stopped; models that ended are in {out}; "
            f"{program()} --resume {out} goes on",
            file=sys.stderr,
        )
        return stopped.exit_code
    return 0


def _study_to_go_on(args: argparse.Namespace) -> Study | None:
    """Read the study in the folder of `--resume FOLDER`; None if settings are given as well."""
    if args.resume == "":
        raise ConfigError("--resume: expected a folder, got an empty one")
    if not isinstance(args.resume, str):
        return None
    if args.out is not None:
        raise ConfigError("--resume and --out: expected one folder, got both")
    args.out = args.resume
    parser = build_parser()
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    if given - {"resume", "out", "fused", "json", "quiet", "dry_run", *_WHERE}:
        return None

    from bilinear.results.open import load_results
    from bilinear.results.study_results import StudyResults

    if "://" not in args.resume and not Path(args.resume).is_dir():
        raise ConfigError(f"--resume: expected a results folder, got {args.resume!r}")
    results = load_results(args.resume)
    if isinstance(results, StudyResults):
        args.fused = True
        return results.study
    args.fused = results.environment["backend"] != "reference"
    return Study((results.config,))


def _out_folder(args: argparse.Namespace, study: Study) -> str:
    """Return where results go; raises ConfigError for --resume if no run was begun there."""
    from bilinear.results.folder import open_folder
    from bilinear.training.run import fresh_folder, latest_folder

    out = args.out
    if out is None:
        out = str(latest_folder(study) if args.resume else fresh_folder(study))
    begun = "study.json" if len(study) > 1 else "config.json"
    path = open_folder(out).path
    if path is not None and (path.exists() or path.is_symlink()) and not path.is_dir():
        what = "a file" if path.exists() else "a link to nothing"
        raise ConfigError(f"--out: expected a folder, got {out!r}, {what}")
    if args.resume and not open_folder(out).exists(begun):
        raise ConfigError(f"--resume: expected a folder with {begun}, got {out!r}")
    return out


def _run(args: argparse.Namespace, study: Study, backend: Any, out: str, console: Any) -> None:
    from bilinear import plots
    from bilinear.cli import report
    from bilinear.cli.progress import Display
    from bilinear.cli.session import recording
    from bilinear.training.forecast.calibration import calibrate
    from bilinear.training.run import run_study, run_sweep

    started = time.monotonic()
    rate = calibrate(backend, study.cells, measure=False)
    report.print_expectation(console, study, rate)
    with stoppable(), Display(study.cells, console, rate) as display:
        on_event = recording(display, out, backend)
        results: Any
        if len(study) > 1:
            results = run_study(study, backend, out, on_event, plots.save_study)
        else:
            only = study.cells[0]
            results = run_sweep(only, backend, out, partial(on_event, 0), plots.save_summary)
    seconds = time.monotonic() - started
    report.print_hindsight(console, backend, display.state, seconds)
    report.print_summary(console, results)
    if args.json:
        print(json.dumps(report.summary(results)))


def _command_parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = Parser(prog=f"{program()} {name}", description=description)
    parser.add_argument("results", nargs="?", help="a results folder or URL (the last run)")
    return parser


def _opened(results: str | None) -> "Results | StudyResults":
    """Open the folder that was named, or the one of the last run."""
    from bilinear.cli.runs import last_run
    from bilinear.results.open import load_results

    return load_results(last_run() if results is None else results)


def _show(argv: Sequence[str]) -> int:
    parser = _command_parser("show", "Print the summary of a results folder.")
    parser.add_argument("--json", action="store_true", help="as one JSON line")
    args = parser.parse_args(argv)

    from rich.console import Console

    from bilinear.cli import report

    results = _opened(args.results)
    if args.json:
        print(json.dumps(report.summary(results)))
    else:
        report.print_summary(Console(highlight=False, markup=False), results)
    return 0


def _runs(argv: Sequence[str]) -> int:
    parser = Parser(prog=f"{program()} runs", description="List results folders, the last first.")
    parser.add_argument("parent", nargs="?", type=PATH, help="where they are (runs)")
    args = parser.parse_args(argv)

    from rich.console import Console

    from bilinear.cli.runs import RUNS, rows
    from bilinear.cli.tables import print_table

    parent = args.parent or RUNS
    found = list(rows(parent))
    if not found:
        raise ConfigError(f"runs: no results folder under {parent}")
    first_to_go = ("task", "models", "smallest perfect")
    print_table(Console(highlight=False, markup=False), found, first_to_go=first_to_go)
    return 0


def _check(argv: Sequence[str]) -> int:
    parser = _command_parser(
        "check",
        "Verify every file of a results folder, and compute the accuracies of every "
        "model from its weights once more. Exits with 1 if anything is not as it was written.",
    )
    args = parser.parse_args(argv)

    from bilinear.results.study_results import StudyResults
    from bilinear.results.verify import check, check_study

    results = _opened(args.results)
    sweeps = results.begun if isinstance(results, StudyResults) else [results]
    models, wrong = 0, []
    for sweep in sweeps:
        found = check(sweep)
        models += len(found.rows)
        wrong += [f"{sweep.folder}/{finding}" for finding in found.findings]
        if not sweep.has_digests:
            print(f"{sweep.folder}: has no digests; only what can be read is checked")
    if isinstance(results, StudyResults) and results.complete and not wrong:
        wrong += [f"{results.folder}/{finding}" for finding in check_study(results)]
    for line in wrong:
        print(line)
    print(f"{models:,} models are sound, {len(wrong):,} files are not")
    return 1 if wrong else 0


def _export(argv: Sequence[str]) -> int:
    parser = Parser(prog=f"{program()} export", description="Write results for other code to read.")
    parser.add_argument("results", help="a results folder or URL")
    parser.add_argument("--format", choices=["notebook"], required=True)
    parser.add_argument("--file", type=PATH, required=True, help="the file to write")
    parser.add_argument("--seed", type=WHOLE, help="which seed (the first of the sweep)")
    args = parser.parse_args(argv)

    from bilinear.results.export_notebook import write_notebook_pickle
    from bilinear.results.study_results import StudyResults

    _check_place("--file", args.file)
    results = _opened(args.results)
    if isinstance(results, StudyResults):
        cells = f"{args.results}/cells"
        raise ConfigError(f"results: expected a sweep, got a study; name a folder in {cells}")
    write_notebook_pickle(results, args.file, seed=args.seed)
    print(f"wrote {args.file}")
    return 0


def _check_place(option: str, path: Path) -> None:
    """Raise ConfigError for a file whose folder is not there, before anything is computed."""
    if not path.parent.is_dir():
        raise ConfigError(f"{option}: expected a file in a folder that is there, got '{path}'")


def _view(argv: Sequence[str]) -> int:
    parser = _command_parser("view", "Write one HTML page with a slider over the widths.")
    parser.add_argument("--out", type=PATH, help="the page (view.html in the results folder)")
    parser.add_argument(
        "--seeds", type=INTEGERS, metavar="LIST", help="which seeds: 0,5,7 (the first that fit)"
    )
    parser.add_argument(
        "--remainders", type=INTEGERS, metavar="LIST", help="which outputs (those the sweep kept)"
    )
    parser.add_argument("--no-open", action="store_true", help="only write the page")
    args = parser.parse_args(argv)

    from bilinear.page.write import write_page
    from bilinear.results.study_results import StudyResults

    if args.out is not None:
        _check_place("--out", args.out)
    results = _opened(args.results)
    if isinstance(results, StudyResults):
        return _view_study(results, args)
    print(f"writing a page of {len(results.jobs)} models in {results.folder} …", flush=True)
    path = args.out or results.path / "view.html"
    page = write_page(results, path, seeds=args.seeds, remainders=args.remainders)
    if page.seeds_left_out:
        left = ", ".join(map(str, page.seeds_left_out))
        print(f"left out for size: seeds {left} (--seeds chooses)")
    print(f"wrote {path}, {page.size / 1e6:.1f} MB: {_open_page(path, args)}")
    return 0


# `view` of a study with more cells writes no pages of cells: each takes seconds.
_CELL_PAGES = 16


def _view_study(results: "StudyResults", args: argparse.Namespace) -> int:
    from bilinear.page.study import write_study_page
    from bilinear.page.write import write_page

    if args.seeds is not None or args.remainders is not None:
        raise ConfigError("--seeds, --remainders: expected with a sweep alone, got a study")
    path = args.out or results.path / "view.html"
    cells = [cell for cell in results.begun if cell.jobs]
    if len(cells) <= _CELL_PAGES:
        for cell in cells:
            print(f"writing a page of {len(cell.jobs)} models in {cell.folder} …", flush=True)
            write_page(cell, cell.path / "view.html")
    else:
        print(f"{program()} view {results.folder}/cells/… writes the page of a cell")
    size = write_study_page(results, path)
    print(f"wrote {path}, {size / 1e3:.0f} kB: {_open_page(path, args)}")
    return 0


def _open_page(path: str | os.PathLike[str], args: argparse.Namespace) -> str:
    """Open a page on a machine with a display; return what was done, or what the user can do."""
    # Without a display a text browser would take over the terminal.
    display = sys.platform != "linux" or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    may_open = not args.no_open and sys.stdout.isatty() and display
    if may_open and webbrowser.open(f"file://{os.path.abspath(path)}"):
        return "opened in the browser"
    return "open it in a browser, no network needed"


_RUN = {"runs": _runs, "show": _show, "check": _check, "view": _view, "export": _export}
