"""The commands: a sweep, and `runs`, `show`, `check`, `view` and `export` for its results."""

import argparse
import dataclasses
import io
import itertools
import json
import math
import os
import sys
import time
import webbrowser
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bilinear
from bilinear.cli.numbers import INTEGERS, PATH, REAL, REALS, WHOLE, integer, integers, option
from bilinear.cli.parser import Parser, naming_options, program
from bilinear.cli.signals import Stopped, stoppable
from bilinear.errors import ConfigError, EngineError, ResultsError, shown
from bilinear.experiment.config import NOTEBOOK_REMAINDERS, PRECISIONS, SweepConfig, check_modulus
from bilinear.experiment.narrowing import DROPS, Narrowing
from bilinear.experiment.presets import PRESETS
from bilinear.experiment.schedule import SHAPES, Schedule
from bilinear.experiment.study import AXES, MAX_MODELS, Study, check_size

if TYPE_CHECKING:
    from bilinear.results.study_results import StudyResults
    from bilinear.results.sweep_results import Results

_NEEDED = "the command needs pip install 'bilinear[sweep]'"

_NO_MEMORY = "not enough memory; fewer or narrower models, or a smaller P, need less"

# The middle of a longer message is left out: an argument can be of any length.
_LONGEST = 2000

# Options that say where to train, which may differ from one run in a folder to the next.
_WHERE = {"device", "engine", "ray_address"}

_EXAMPLES = """\
examples:
  python sweep.py --fused                          every width of (a + b) mod 64, one seed each
  python sweep.py --fused --widths 16,12,8 --seeds 32
                                                   how often do narrow ones succeed?
  python sweep.py --fused --p 59,64 --train-frac 0.5,0.75
                                                   a study: every combination, in one folder
  python sweep.py --fused --narrow                 one model, narrowed a unit at a time
  python sweep.py --fused --preset notebook        the notebook's protocol, on the fused path
  python sweep.py                                  the notebook's own loop (slow: the reference)
  python sweep.py --fused --dry-run                FLOP, bytes and time of what would run

Results go to a folder of their own. Stop at any time: the same command with the same --out, or
--resume FOLDER alone, goes on, and ends with the same bits.
"""


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
            return COMMANDS[argv[0]][0](argv[1:])
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


def _seeds(text: str) -> tuple[int, ...]:
    """A single number is how many seeds there are; anything else lists them."""
    if "," in text or ".." in text:
        return integers(text)
    count = integer(text)
    if not 0 < count <= MAX_MODELS:
        raise ConfigError(f"expected 1 to {MAX_MODELS:,} of them, got {shown(text)}")
    return tuple(range(count))


def _batch_size(text: str) -> int:
    if text == "full":
        return 0
    try:
        size = integer(text)
    except ConfigError:
        size = 0
    if size < 1:
        raise ConfigError(f"expected full or a number ≥ 1, got {shown(text)}")
    return size


def _remainders(text: str) -> str | tuple[int, ...]:
    """Which outputs `all` means depends on p, which is not known here."""
    return text if text in ("all", "none") else integers(text)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the sweep's options."""
    others = "\n".join(f"  {name:8} {what}" for name, (_, what) in COMMANDS.items())
    parser = Parser(
        prog=program(),
        usage="%(prog)s [options]\n       %(prog)s COMMAND [options]",
        description="Train bilinear models for (a + b) mod P at every hidden width, all at once, "
        "and find the smallest that generalises perfectly.",
        epilog=f"commands, each with --help:\n{others}\n\n"
        + _EXAMPLES.replace("python sweep.py", program()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"bilinear {bilinear.__version__}")
    what = parser.add_argument_group("what to train")
    what.add_argument("--fused", action="store_true", help="the fused path, all models at once")
    what.add_argument("--p", type=INTEGERS, metavar="LIST", help="the modulus, or several (64)")
    what.add_argument(
        "--widths", type=INTEGERS, metavar="LIST", help="hidden widths: 1..64 or 64,32,16 (P..1)"
    )
    what.add_argument(
        "--seeds", type=option(_seeds), help="how many seeds a width, or a list: 0,5,7 (1)"
    )
    what.add_argument(
        "--narrow",
        action="store_true",
        help="start each width from the next wider one's weights less a unit",
    )
    what.add_argument(
        "--train-frac", type=REALS, metavar="LIST", help="share of pairs trained on (0.75)"
    )
    how = parser.add_argument_group(
        "how to train it (in brackets: the default preset's; the notebook's, if it differs)"
    )
    how.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        help="all of the following at once: default (with --fused) or notebook (without)",
    )
    how.add_argument("--steps", type=WHOLE, help="steps a model at most (6000)")
    how.add_argument("--epochs", type=WHOLE, help="the same, counted in epochs (notebook: 600)")
    how.add_argument(
        "--lr",
        type=REALS,
        metavar="LIST",
        help="AdamW's learning rate at the first step (0.05; 0.003)",
    )
    how.add_argument("--lr-end", type=REAL, help="… and at the last (0.0005; 0.003)")
    how.add_argument(
        "--schedule", choices=SHAPES, help="how the learning rate gets there (linear; constant)"
    )
    how.add_argument(
        "--weight-decay",
        type=REALS,
        metavar="LIST",
        help="decoupled weight decay at the first step (0.4; 0.0003)",
    )
    how.add_argument("--weight-decay-end", type=REAL, help="… and at the last (0.004; 0.0003)")
    how.add_argument(
        "--decay-schedule",
        choices=SHAPES,
        help="how the weight decay gets there (cosine; constant)",
    )
    how.add_argument("--beta1", type=REAL, help="AdamW's β₁ (0.95; 0.9)")
    how.add_argument("--beta2", type=REAL, help="AdamW's β₂ (0.99; 0.999)")
    how.add_argument(
        "--batch-size", type=option(_batch_size), metavar="full|N", help="pairs a step (full; 64)"
    )
    how.add_argument("--init-scale", type=REAL, help="factor on nn.Linear's initial bounds (1)")
    how.add_argument("--eval-every", type=WHOLE, help="steps between evaluations (10; an epoch)")
    how.add_argument(
        "--goal", choices=["full", "val"], help="pairs that must all be right to stop (full; val)"
    )
    how.add_argument(
        "--hold",
        type=WHOLE,
        help="evaluations in a row at 100 %% before stopping (10; 1)",
    )
    narrow = parser.add_argument_group("how to narrow (with --narrow)")
    narrow.add_argument(
        "--drop",
        choices=DROPS,
        help="the unit to drop: of the weakest circuit, of the least loss or norm, any (circuit)",
    )
    narrow.add_argument("--tries", type=WHOLE, help="ways to narrow a model that are tried in turn")
    narrow.add_argument("--redraws", type=WHOLE, help="times a unit is drawn anew at a width")
    where = parser.add_argument_group("where")
    where.add_argument("--device", default="auto", metavar="auto|cpu|cuda", help="(auto)")
    where.add_argument(
        "--engine", default="local", metavar="local|ray", help="this machine or a cluster (local)"
    )
    where.add_argument(
        "--ray-address",
        metavar="HOST:PORT",
        help="the cluster's address (one found here, or a new one)",
    )
    where.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of a GPU's matmuls: float32, 16 bits, or tf32 (highest)",
    )
    where.add_argument(
        "--out", help="results folder or URL: s3://bucket/run (a fresh folder under runs/)"
    )
    where.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="FOLDER",
        help="go on in FOLDER with its own settings; without FOLDER, in --out or the last run of "
        "these settings",
    )
    where.add_argument(
        "--remainders",
        type=option(_remainders),
        metavar="LIST|all|none",
        help="outputs whose interaction matrices are kept (0,5,22,42,63)",
    )
    show = parser.add_argument_group("what to show")
    show.add_argument(
        "--dry-run", action="store_true", help="print what would run, its cost and time, and stop"
    )
    show.add_argument(
        "--json",
        action="store_true",
        help="the summary (or forecast) as one JSON line on stdout, all else on stderr",
    )
    show.add_argument("--quiet", action="store_true", help="print nothing but errors")
    return parser


def study_from(args: argparse.Namespace) -> Study:
    """Build the study: the product of the lists of p, train fraction, lr and weight decay.

    Its size is checked before any cell is made. Raises ConfigError.
    """
    moduli: Sequence[int] = args.p or (SweepConfig.p,)
    lists = {axis: getattr(args, axis) or (None,) for axis in AXES} | {"p": moduli}
    for axis, values in lists.items():
        twice = [value for value, times in Counter(values).items() if times > 1]
        if twice:
            option = axis.replace("_", "-")
            raise ConfigError(f"--{option}: expected each once, got {twice[0]} again")
    for p in moduli:
        check_modulus(p)
    widths = sum(len(args.widths or range(p)) for p in moduli)
    seeds = len(args.seeds or SweepConfig.seeds)
    check_size(widths * seeds * math.prod(map(len, lists.values())) // len(moduli))
    return Study(
        tuple(
            _cell(argparse.Namespace(**(vars(args) | dict(zip(lists, values, strict=True)))))
            for values in itertools.product(*lists.values())
        )
    )


def _cell(args: argparse.Namespace) -> SweepConfig:
    """Build one cell; p, train_frac, lr and weight_decay are single numbers here."""
    if args.steps is not None and args.epochs is not None:
        raise ConfigError("--steps and --epochs: expected one of them, got both")
    preset = PRESETS[args.preset or ("default" if args.fused else "notebook")]
    preset = {f.name: f.default for f in dataclasses.fields(SweepConfig)} | preset
    names = ("seeds", "train_frac", "steps", "epochs", "batch_size", "init_scale", "eval_every",
             "goal", "hold", "precision")  # fmt: skip
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    settings: dict[str, Any] = preset | given
    settings |= {
        "p": args.p,
        "widths": args.widths or tuple(range(args.p, 0, -1)),
        "betas": tuple(
            old if new is None else new
            for old, new in zip(preset["betas"], (args.beta1, args.beta2), strict=True)
        ),
        "lr": _schedule("lr", preset["lr"], args.lr, args.lr_end, args.schedule),
        "weight_decay": _schedule(
            "weight-decay",
            preset["weight_decay"],
            args.weight_decay,
            args.weight_decay_end,
            args.decay_schedule,
        ),
        "narrow": _narrowing(args),
        "remainders": {
            None: tuple(r for r in NOTEBOOK_REMAINDERS if r < args.p),
            "all": tuple(range(args.p)),
            "none": (),
        }.get(args.remainders, args.remainders),
    }
    epochs = settings.pop("epochs", None)
    if epochs is not None and args.steps is None:
        settings["steps"] = epochs * SweepConfig(**settings | {"steps": 1}).steps_per_epoch
    if settings["batch_size"] and args.eval_every is None:  # the notebook evaluates once an epoch
        settings["eval_every"] = SweepConfig(**settings).steps_per_epoch
    return SweepConfig(**settings)


def _narrowing(args: argparse.Namespace) -> Narrowing | None:
    given = {name: getattr(args, name) for name in ("drop", "tries", "redraws")}
    given = {name: value for name, value in given.items() if value is not None}
    if given and not args.narrow:
        raise ConfigError(f"--{next(iter(given))}: expected with --narrow alone")
    return Narrowing(**given) if args.narrow else None


def _schedule(
    name: str, preset: Schedule, start: float | None, end: float | None, shape: str | None
) -> Schedule:
    """A start given alone keeps the preset's shape and its ratio of end to start."""
    shape = shape or preset.shape
    new_start = preset.start if start is None else start
    ratio = 1.0 if shape == "constant" else preset.end / preset.start
    try:
        return Schedule(new_start, new_start * ratio if end is None else end, shape)
    except ConfigError as error:
        of_option = {"schedule start": f"--{name}", "schedule end": f"--{name}-end"}
        setting, _, rest = str(error).partition(": ")
        shapes = "--schedule" if name == "lr" else "--decay-schedule"
        raise ConfigError(f"{of_option.get(setting, shapes)}: {rest}") from None


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


COMMANDS = {
    "runs": (_runs, "list the results folders under runs/"),
    "show": (_show, "print the summary of a results folder"),
    "check": (_check, "verify a results folder: digests, and accuracies from the weights"),
    "view": (_view, "write a page with a slider over the widths, and open it"),
    "export": (_export, "write results for other code to read"),
}
