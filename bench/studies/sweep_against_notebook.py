"""Is the sweep 25 times faster than the notebook? `python -m bench.studies.sweep_against_notebook`.

The fused sweep is timed as a user runs it: the whole command, from cold start to finished folder.
The notebook's whole loop would take most of an hour, so only some epochs at a few widths are timed,
in turns with the fused sweep. Its total is estimated as the mean time of an epoch, interpolated
over the widths, times the number of epochs of the notebook's own logged sweep of 64 widths (36,410
of 38,400, because some widths stopped early). The fused sweep has a stricter goal: its models must
be right on all pairs for several evaluations in a row.
"""

import os
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from bench.measure.clock import sweep_seconds
from bench.measure.environment import write_result
from bilinear.reference import ModelConfig
from bilinear.results.open import load_results
from bilinear.training.notebook_loop import train_notebook

NOTEBOOK_EPOCHS = 36_410  # github.com/loganriggs/tn_4_interp, its logged sweep: 10 of 64 stop early
WIDTHS = (1, 16, 32, 48, 64)
ROUNDS, EPOCHS_TIMED = 3, 8
# Models this small may gain nothing from more threads; the faster of the two counts.
THREADS = (1, max(2, os.cpu_count() or 2))


def time_fused() -> tuple[float, dict[int, bool]]:
    """Seconds of `python sweep.py --fused`, and which widths ended perfect."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        seconds = sweep_seconds("--out", str(out))
        table = load_results(out).table
        return seconds, dict(
            zip(table["d_hidden"].tolist(), table["perfect"].tolist(), strict=True)
        )


def time_notebook_epoch(d_hidden: int, threads: int) -> float:
    """Median seconds of an epoch, without the first one, which includes the warm-up."""
    torch.set_num_threads(threads)
    ends = [time.perf_counter()]
    train_notebook(
        ModelConfig(64, d_hidden),
        epochs=EPOCHS_TIMED + 1,
        on_epoch=lambda epoch, acc: ends.append(time.perf_counter()),
    )
    return float(np.median(np.diff(ends)[1:]))


def main() -> None:
    """Measure, print and write bench/results/sweep_against_notebook.json."""
    fused: list[float] = []
    epoch: dict[tuple[int, int], list[float]] = {(d, t): [] for d in WIDTHS for t in THREADS}
    perfect: dict[int, bool] = {}
    for _ in range(ROUNDS):
        seconds, perfect = time_fused()
        fused.append(seconds)
        for d in WIDTHS:
            for threads in THREADS:
                epoch[d, threads].append(time_notebook_epoch(d, threads))
    medians = [min(median(epoch[d, threads]) for threads in THREADS) for d in WIDTHS]
    mean_epoch = float(np.interp(np.arange(1, 65), WIDTHS, medians).mean())
    notebook = mean_epoch * NOTEBOOK_EPOCHS
    ratio = notebook / median(fused)
    print(f"fused sweep, whole command: {median(fused):.1f} s ({min(fused):.1f}–{max(fused):.1f})")
    print(f"notebook's loop: {1e3 * mean_epoch:.0f} ms an epoch, {notebook:,.0f} s added up")
    print(f"ratio {ratio:.0f}×; widths not perfect: {[d for d in perfect if not perfect[d]]}")
    path = write_result(
        "sweep_against_notebook",
        {
            "fused_seconds": fused,
            "notebook_epoch_seconds": {f"d={d}, {t} threads": epoch[d, t] for d, t in epoch},
            "notebook_mean_epoch_seconds": mean_epoch,
            "notebook_epochs": NOTEBOOK_EPOCHS,
            "notebook_seconds_added_up": notebook,
            "ratio": ratio,
            "not_perfect": [d for d in perfect if not perfect[d]],
        },
    )
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
