"""How few hidden units, how often? `python -m bench.studies.frontier_study FOLDER [FOLDER …]`.

Gathers finished sweeps of one recipe into bench/results/frontier-pP.json and a picture beside it:
by width the share of models that are right on all p² pairs, with its 95 % Wilson interval. Each
figure can be made again from the command stored with it.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.measure.environment import RESULTS, write_result
from bilinear.errors import ConfigError
from bilinear.results.frontier import frontier
from bilinear.results.open import load_results
from bilinear.results.sweep_results import Results

_OWN = ("widths", "seeds", "remainders")  # settings in which the folders may differ


def check_same_recipe(results: list[Results]) -> None:
    """Raise ConfigError if two folders trained their models differently."""
    first = results[0].config
    for other in results[1:]:
        different = [d for d in first.differences(other.config) if d.split(":")[0] not in _OWN]
        if different:
            raise ConfigError(f"{other.path}: another recipe ({'; '.join(different)})")


def draw(widths: list[dict], p: int, ax: Axes) -> Axes:
    """Share of perfect models against width, with intervals."""
    d = np.array([w["d_hidden"] for w in widths])
    share = np.array([w["share"] for w in widths])
    low = share - [w["wilson_low"] for w in widths]
    high = [w["wilson_high"] for w in widths] - share
    ax.errorbar(d, share, yerr=[low, high], fmt="o", color="#006BA4", capsize=2)
    ax.set_xlabel("hidden width d")
    ax.set_ylabel("share of models right on all pairs")
    ax.set_title(f"(a + b) mod {p}: how often training ends perfect (95 % Wilson intervals)")
    ax.set_ylim(-0.02, 1.02)
    ax.grid(alpha=0.3)
    return ax


def main() -> None:
    """Read the folders, write the JSON and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    results = [load_results(folder) for folder in parser.parse_args().folders]
    check_same_recipe(results)
    table = pd.concat([r.table for r in results]).drop_duplicates(["d_hidden", "seed"])
    found, p = frontier(table), results[0].config.p
    path = write_result(
        f"frontier-p{p}",
        {
            "recipe": results[0].config.to_json(),
            "commands": [
                f"python sweep.py --fused --p {p} --remainders none "
                f"--widths {r.config.widths[0]}..{r.config.widths[-1]} "
                f"--seeds {len(r.config.seeds)}"
                for r in results
            ],
            **found,
        },
    )
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    draw(found["widths"], p, figure.subplots())
    FigureCanvasAgg(figure)
    figure.savefig(RESULTS / f"frontier-p{p}.png", dpi=200)
    print(f"smallest perfect width {found['smallest_perfect_width']}; wrote {path}")


if __name__ == "__main__":
    main()
