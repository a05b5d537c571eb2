"""The options of a sweep, and the study of configs that they ask for."""

import argparse
import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import bilinear
from bilinear.cli.numbers import INTEGERS, REAL, REALS, WHOLE, integer, integers, option
from bilinear.cli.parser import Parser, program
from bilinear.errors import ConfigError, shown
from bilinear.experiment.config import NOTEBOOK_REMAINDERS, PRECISIONS, SweepConfig, check_modulus
from bilinear.experiment.narrowing import DROPS, Narrowing
from bilinear.experiment.presets import PRESETS
from bilinear.experiment.schedule import SHAPES, Schedule
from bilinear.experiment.study import AXES, MAX_MODELS, Study, check_size

# The commands beside the sweep, and what `--help` says of them.
COMMANDS = {
    "runs": "list the results folders under runs/",
    "show": "print the summary of a results folder",
    "check": "verify a results folder: digests, and accuracies from the weights",
    "view": "write a page with a slider over the widths, and open it",
    "export": "write results for other code to read",
}

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
    others = "\n".join(f"  {name:8} {what}" for name, what in COMMANDS.items())
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
