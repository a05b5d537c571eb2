"""The command line of the sweep: arguments in, calls to the library, lines out."""

import argparse
import dataclasses
import itertools
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from bilinear.errors import ConfigError, EngineError, ResultsError
from bilinear.experiment.config import NOTEBOOK_REMAINDERS, PRECISIONS, SweepConfig
from bilinear.experiment.presets import PRESETS
from bilinear.experiment.schedule import SHAPES, Schedule
from bilinear.experiment.study import Study, check_size

if TYPE_CHECKING:
    from bilinear.results.sweep_results import Results

_Number = TypeVar("_Number", int, float)

_EXAMPLES = """\
examples:
  python sweep.py --fused                          every width of (a + b) mod 64, one seed each
  python sweep.py --fused --widths 16,12,8 --seeds 32
                                                   how often do narrow ones succeed?
  python sweep.py --fused --p 59,64 --train-frac 0.5,0.75
                                                   a study: every combination, in one folder
  python sweep.py --fused --preset notebook        the notebook's protocol, on the fused path
  python sweep.py                                  the notebook's own loop (slow: the reference)
  python sweep.py --fused --dry-run                FLOP, bytes and time of what would run
  python sweep.py show runs/p64-20250101-120000    the summary of a finished sweep
  python sweep.py view runs/p64-20250101-120000    a page with a slider over the widths
  python sweep.py export runs/p64-… --format notebook --file results.pkl

Results go to a folder of their own. Stop at any time: the same command with the same --out, or
with --resume, goes on, and ends with the same bits.
"""


class _Parser(argparse.ArgumentParser):
    """One line on stderr and exit code 2 for a bad argument, without the usage text."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 2 for bad input, 130 when interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    commands = {"show": _show, "export": _export, "view": _view}
    try:
        if argv and argv[0] in commands:
            return commands[argv[0]](argv[1:])
        return _sweep(argv)
    except (ConfigError, EngineError, ResultsError) as error:
        return _fail(str(error))
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}")


def _fail(message: str) -> int:
    print(f"sweep.py: {message}", file=sys.stderr)
    return 2


def integers(text: str) -> tuple[int, ...]:
    """Parse `64,32,16`, `1..64` or `64..1`; raises ConfigError."""
    values: list[int] = []
    for part in text.split(","):
        first, dots, last = part.partition("..")
        try:
            a, b = int(first), int(last if dots else first)
        except ValueError:
            raise ConfigError(f"expected integers such as 64,32 or 1..64, got {text!r}") from None
        if abs(b - a) >= 10_000_000:
            raise ConfigError(f"expected a range of at most 10,000,000 integers, got {text!r}")
        values.extend(range(a, b + 1) if a <= b else range(a, b - 1, -1))
    return tuple(values)


def _named(name: str, text: str) -> tuple[int, ...]:
    try:
        return integers(text)
    except ConfigError as error:
        raise ConfigError(f"--{name}: {error}") from None


def _seeds(text: str) -> tuple[int, ...]:
    """A single number is how many; anything else lists them."""
    if text.isdigit():
        if int(text) > 10_000_000:
            raise ConfigError(f"--seeds: expected at most 10,000,000, got {text}")
        return tuple(range(int(text)))
    return _named("seeds", text)


def _batch_size(text: str) -> int:
    if text == "full":
        return 0
    if not text.isdigit() or int(text) == 0:
        raise ConfigError(f"--batch-size: expected full or a number ≥ 1, got {text!r}")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the sweep's options."""
    parser = _Parser(
        prog="sweep.py",
        description="Train bilinear models for (a + b) mod P at every hidden width, all at once, "
        "and find the smallest that generalises perfectly.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what to train")
    what.add_argument("--fused", action="store_true", help="the fused path, all models at once")
    what.add_argument("--p", default="64", metavar="LIST", help="the modulus, or several (64)")
    what.add_argument("--widths", metavar="LIST", help="hidden widths: 1..64 or 64,32,16 (1..P)")
    what.add_argument("--seeds", default="1", help="how many seeds a width, or a list: 0,5,7 (1)")
    what.add_argument("--train-frac", metavar="LIST", help="share of pairs trained on (0.75)")
    how = parser.add_argument_group("how to train it (flags override the preset)")
    how.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        help="hyper-parameters: default (with --fused) or notebook (without)",
    )
    how.add_argument("--steps", type=int, help="steps a model at most")
    how.add_argument("--epochs", type=int, help="the same, counted in epochs")
    how.add_argument("--lr", metavar="LIST", help="AdamW's learning rate at the first step")
    how.add_argument("--lr-end", type=float, help="… and at the last")
    how.add_argument("--schedule", choices=SHAPES, help="how the learning rate gets there")
    how.add_argument(
        "--weight-decay", metavar="LIST", help="decoupled weight decay at the first step"
    )
    how.add_argument("--weight-decay-end", type=float, help="… and at the last")
    how.add_argument("--decay-schedule", choices=SHAPES, help="how the weight decay gets there")
    how.add_argument("--beta1", type=float, help="AdamW's β₁")
    how.add_argument("--beta2", type=float, help="AdamW's β₂")
    how.add_argument("--batch-size", metavar="full|N", help="pairs a step")
    how.add_argument("--init-scale", type=float, help="factor on nn.Linear's initial bounds (1)")
    how.add_argument("--eval-every", type=int, help="steps between evaluations")
    how.add_argument("--goal", choices=["full", "val"], help="pairs that must all be right to stop")
    how.add_argument("--hold", type=int, help="evaluations in a row at 100 %% before stopping")
    where = parser.add_argument_group("where")
    where.add_argument("--device", default="auto", metavar="auto|cpu|cuda", help="(auto)")
    where.add_argument(
        "--engine", default="local", metavar="local|ray", help="this machine or a cluster (local)"
    )
    where.add_argument(
        "--ray-address", metavar="HOST:PORT", help="the cluster's (one found here, or a new one)"
    )
    where.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="highest",
        help="of a GPU's matmuls: float32, 16 bits, or tf32 (highest)",
    )
    where.add_argument(
        "--out", help="results folder or URL: s3://bucket/run (a fresh folder under runs/)"
    )
    where.add_argument("--resume", action="store_true", help="go on in --out, or in the last run")
    where.add_argument(
        "--remainders", metavar="LIST|all|none", help="outputs whose interaction matrices are kept"
    )
    show = parser.add_argument_group("what to show")
    show.add_argument(
        "--dry-run", action="store_true", help="say what would run, its cost and time, and stop"
    )
    show.add_argument("--json", action="store_true", help="end with the summary as one JSON line")
    return parser


def config_from(args: argparse.Namespace) -> SweepConfig:
    """Build the config of options that describe one sweep; raises ConfigError."""
    study = study_from(args)
    if len(study) != 1:
        raise ConfigError(f"expected one p, train fraction, lr and decay, got {len(study)} cells")
    return study.cells[0]


def study_from(args: argparse.Namespace) -> Study:
    """Build the study: the product of the lists of p, train fraction, lr and weight decay.

    Its size is checked before any cell is made. Raises ConfigError.
    """
    lists = {
        "p": _each_once("p", _named("p", args.p)),
        "train_frac": _numbers("train-frac", args.train_frac),
        "lr": _numbers("lr", args.lr),
        "weight_decay": _numbers("weight-decay", args.weight_decay),
    }
    per_cell = (len(_named("widths", args.widths)) if args.widths else 1) * len(_seeds(args.seeds))
    check_size(per_cell * math.prod(map(len, lists.values())))
    cells = itertools.product(*lists.values())
    names = tuple(lists)
    return Study(
        tuple(
            _cell(argparse.Namespace(**(vars(args) | dict(zip(names, values, strict=True)))))
            for values in cells
        )
    )


def _numbers(name: str, text: str | None) -> Sequence[float | None]:
    """Parse `0.03,0.05`; None, for the preset's own, if the option was not given."""
    if text is None:
        return (None,)
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--{name}: expected numbers such as 0.3,0.5, got {text!r}") from None
    return _each_once(name, values)


def _each_once(name: str, values: Sequence[_Number]) -> Sequence[_Number]:
    twice = [v for v, n in Counter(values).items() if n > 1]
    if twice:
        raise ConfigError(f"--{name}: expected each once, got {twice[0]} again")
    return values


def _cell(args: argparse.Namespace) -> SweepConfig:
    """Build one cell; p, train_frac, lr and weight_decay are single numbers here."""
    preset = PRESETS[args.preset or ("default" if args.fused else "notebook")]
    preset = {f.name: f.default for f in dataclasses.fields(SweepConfig)} | preset
    given = {
        "p": args.p,
        "widths": _named("widths", args.widths) if args.widths else tuple(range(args.p, 0, -1)),
        "seeds": _seeds(args.seeds),
        "remainders": _remainders(args.remainders, args.p),
        "precision": args.precision,
    }
    for name in ("train_frac", "goal", "hold", "init_scale", "eval_every"):
        if getattr(args, name) is not None:
            given[name] = getattr(args, name)
    if args.batch_size is not None:
        given["batch_size"] = _batch_size(args.batch_size)
    betas = preset["betas"]
    given["betas"] = tuple(
        new if new is not None else old
        for new, old in zip((args.beta1, args.beta2), betas, strict=True)
    )
    given["lr"] = _schedule(preset["lr"], args.lr, args.lr_end, args.schedule)
    given["weight_decay"] = _schedule(
        preset["weight_decay"], args.weight_decay, args.weight_decay_end, args.decay_schedule
    )
    settings = _with_steps(preset | given, args.steps, args.epochs)
    if settings["batch_size"] and args.eval_every is None:  # the notebook looks once an epoch
        settings["eval_every"] = SweepConfig(**settings).steps_per_epoch
    return SweepConfig(**settings)


def _with_steps(settings: dict[str, Any], steps: int | None, epochs: int | None) -> dict[str, Any]:
    """Turn epochs into steps."""
    if steps is not None and epochs is not None:
        raise ConfigError("--steps and --epochs: expected one of them, got both")
    preset_epochs = settings.pop("epochs", None)
    if steps is not None:
        settings["steps"] = steps
    elif epochs is not None or preset_epochs is not None:
        settings["steps"] = 1
        probe = SweepConfig(**settings)
        settings["steps"] = (preset_epochs if epochs is None else epochs) * probe.steps_per_epoch
    return settings


def _schedule(
    preset: Schedule, start: float | None, end: float | None, shape: str | None
) -> Schedule:
    """A start given alone keeps the preset's shape and its ratio of end to start."""
    shape = shape or preset.shape
    new_start = preset.start if start is None else start
    if shape == "constant":
        return Schedule(new_start, new_start if end is None else end, shape)
    ratio = preset.end / preset.start
    return Schedule(new_start, new_start * ratio if end is None else end, shape)


def _remainders(text: str | None, p: int) -> tuple[int, ...]:
    if text is None:
        return tuple(r for r in NOTEBOOK_REMAINDERS if r < p)
    if text in ("all", "none"):
        return tuple(range(p)) if text == "all" else ()
    return _named("remainders", text)


def _sweep(argv: Sequence[str]) -> int:
    args = build_parser().parse_args(argv)
    study = study_from(args)

    from rich.console import Console

    from bilinear.cli import report
    from bilinear.training.engine import choose_engine
    from bilinear.training.forecast.calibration import calibrate
    from bilinear.training.run import check_space

    backend = choose_engine(
        study.cells,
        engine=args.engine,
        fused=args.fused,
        device=args.device,
        ray_address=args.ray_address,
    )
    console = Console(highlight=False)
    report.print_backend(console, backend)
    out = _out_folder(args, study)
    if args.dry_run:
        report.print_plan(console, study, out, backend, calibrate(backend, study.cells))
        return 0
    check_space(study, out)
    try:
        return _run(args, study, backend, out, console)
    except KeyboardInterrupt:
        return _stopped(out)


def _out_folder(args: argparse.Namespace, study: Study) -> str:
    """Say where results go; raises ConfigError for a --resume with nothing to go on from."""
    from bilinear.results.folder import open_folder
    from bilinear.training.run import fresh_folder, latest_folder

    out = str(args.out or (latest_folder(study) if args.resume else fresh_folder(study)))
    begun = "study.json" if len(study) > 1 else "config.json"
    if args.resume and not open_folder(out).exists(begun):
        raise ConfigError(f"--resume: expected a folder with {begun}, got {out!r}")
    return out


def _run(args: argparse.Namespace, study: Study, backend: Any, out: str, console: Any) -> int:
    from bilinear import plots
    from bilinear.cli import report
    from bilinear.cli.progress import Display
    from bilinear.training.run import run_study, run_sweep

    started = time.monotonic()
    with Display(study.cells, console) as display:
        results: Any
        if len(study) > 1:
            results = run_study(study, backend, out, display)
        else:
            results = run_sweep(study.cells[0], backend, out, partial(display, 0))
    seconds = time.monotonic() - started
    report.print_hindsight(console, backend, study.cells, display.state.trained, seconds)
    if len(study) > 1:
        report.print_study_summary(console, results)
        plots.save_study(results)
    else:
        report.print_summary(console, results)
        plots.save_summary(results)
    if args.json:
        summary = report.study_summary if len(study) > 1 else report.summary
        print(json.dumps(summary(results)))
    return 0


def _stopped(out: str) -> int:
    print(
        f"sweep.py: stopped; models that ended are in {out}; the same command with "
        f"--out {out} goes on",
        file=sys.stderr,
    )
    return 130


def _one_sweep(path: str) -> "Results":
    """Open a sweep's folder; a study's is refused, with the way to its cells."""
    from bilinear.results.open import load_results
    from bilinear.results.study_results import StudyResults

    results = load_results(path)
    if isinstance(results, StudyResults):
        raise ConfigError(f"results: expected a sweep, got a study; name a folder in {path}/cells")
    return results


def _show(argv: Sequence[str]) -> int:
    parser = _Parser(prog="sweep.py show", description="Print the summary of a results folder.")
    parser.add_argument("results", help="a results folder or URL")
    parser.add_argument("--json", action="store_true", help="as one JSON line")
    args = parser.parse_args(argv)

    from rich.console import Console

    from bilinear.cli import report
    from bilinear.results.open import load_results
    from bilinear.results.study_results import StudyResults

    results = load_results(args.results)
    if isinstance(results, StudyResults):
        if args.json:
            print(json.dumps(report.study_summary(results)))
        else:
            report.print_study_summary(Console(highlight=False), results)
    elif args.json:
        print(json.dumps(report.summary(results)))
    else:
        report.print_summary(Console(highlight=False), results)
    return 0


def _export(argv: Sequence[str]) -> int:
    parser = _Parser(prog="sweep.py export", description="Write results for other code to read.")
    parser.add_argument("results", help="a results folder or URL")
    parser.add_argument("--format", choices=["notebook"], required=True)
    parser.add_argument("--file", type=Path, required=True, help="the file to write")
    parser.add_argument("--seed", type=int, help="which seed (the first of the sweep)")
    args = parser.parse_args(argv)

    from bilinear.results.export_notebook import write_notebook_pickle

    write_notebook_pickle(_one_sweep(args.results), args.file, seed=args.seed)
    print(f"wrote {args.file}")
    return 0


def _view(argv: Sequence[str]) -> int:
    parser = _Parser(
        prog="sweep.py view", description="Write one HTML page with a slider over the widths."
    )
    parser.add_argument("results", help="a results folder or URL")
    parser.add_argument("--out", type=Path, help="the page (view.html in the results folder)")
    parser.add_argument("--seeds", metavar="LIST", help="which seeds: 0,5,7 (the first that fit)")
    parser.add_argument("--remainders", metavar="LIST", help="which outputs (those the sweep kept)")
    args = parser.parse_args(argv)

    from bilinear.page.write import write_page

    results = _one_sweep(args.results)
    page = write_page(
        results,
        args.out or results.path / "view.html",
        seeds=_named("seeds", args.seeds) if args.seeds else None,
        remainders=_named("remainders", args.remainders) if args.remainders else None,
    )
    if page.seeds_left_out:
        left = ", ".join(map(str, page.seeds_left_out))
        print(f"left out for size: seeds {left} (--seeds chooses)")
    print(f"wrote {page.path}, {page.size / 1e6:.1f} MB: open it in a browser, no network needed")
    return 0
