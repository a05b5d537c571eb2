"""`bilinear.sweep`: a sweep from Python, with the command's progress on a terminal or notebook."""

import os
from collections.abc import Iterable
from functools import partial
from itertools import islice
from typing import Any

from rich.console import Console

from bilinear.cli.progress import Display
from bilinear.cli.session import recording
from bilinear.errors import ConfigError, shown
from bilinear.experiment.config import NOTEBOOK_REMAINDERS, SweepConfig, check_modulus
from bilinear.experiment.study import MAX_MODELS, Study
from bilinear.results.folder import open_folder
from bilinear.results.sweep_results import Results
from bilinear.training.choose import choose
from bilinear.training.forecast.calibration import calibrate
from bilinear.training.run import fresh_folder, run_sweep


def sweep(
    p: int = 64,
    widths: Iterable[int] | None = None,
    seeds: int | Iterable[int] = 1,
    *,
    out: str | os.PathLike[str] | None = None,
    device: str = "auto",
    progress: bool = True,
    **settings: Any,
) -> Results:
    """Train (a + b) mod p at every width and seed, on the fused path, and return the results.

    Args:
        p: the modulus.
        widths: hidden widths; None takes p … 1.
        seeds: how many seeds a width, or which.
        out: results folder or fsspec URL; None takes a fresh folder under runs/. What is there of
            the same sweep is not trained again.
        device: "auto", "cpu" or "cuda".
        progress: whether to show what is going on.
        settings: any other field of `SweepConfig`, such as `steps` or `train_frac`.

    Raises:
        ConfigError: a setting that cannot be trained, or a folder of another sweep.
        TypeError: a name that is no field of `SweepConfig`.

    Examples:
        >>> import tempfile, bilinear
        >>> out = tempfile.mkdtemp()
        >>> results = bilinear.sweep(p=5, widths=[4, 3], steps=20, out=out, progress=False)
        >>> len(results.table)
        2
    """
    check_modulus(p)
    settings.setdefault("remainders", tuple(r for r in NOTEBOOK_REMAINDERS if r < p))
    config = SweepConfig(
        p=p,
        widths=tuple(range(p, 0, -1)) if widths is None else _integers("widths", widths),
        seeds=_integers("seeds", range(seeds) if isinstance(seeds, int) else seeds),
        **settings,
    )
    study = Study((config,))
    out = str(fresh_folder(study) if out is None else open_folder(out))
    backend = choose(config, fused=True, device=device)
    console = Console(highlight=False, markup=False, quiet=not progress)
    with Display([config], console, calibrate(backend, [config], measure=False)) as display:
        on_event = recording(display, out, backend)
        return run_sweep(config, backend, out, partial(on_event, 0))


def _integers(name: str, values: Iterable[int]) -> tuple[int, ...]:
    if not isinstance(values, Iterable):
        raise ConfigError(f"{name}: expected integers, got {shown(values)}")
    # `values` may be endless; one more than the most allowed is enough for Study to refuse it.
    return tuple(islice(values, MAX_MODELS + 1))
