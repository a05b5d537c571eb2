"""How few hidden units, how often? `python -m bench.studies.frontier_study FOLDER [FOLDER …]`.

Gathers finished sweeps of one recipe into bench/results/frontier-pP.json: by width the share of
models that are right on all p² pairs, with its 95 % Wilson interval. bench.studies.narrowing plots
these shares. The JSON file also stores the commands that train the models again.
"""

import argparse
from pathlib import Path

import pandas as pd

from bench.measure.environment import write_result
from bilinear.errors import ConfigError
from bilinear.results.frontier import frontier
from bilinear.results.open import load_results
from bilinear.results.sweep_results import Results


def check_same_recipe(results: list[Results], may_differ: tuple[str, ...]) -> None:
    """Raise ConfigError if two folders differ in a setting that `may_differ` does not name."""
    first, *others = results
    for other in others:
        different = [
            d for d in first.config.differences(other.config) if d.split(":")[0] not in may_differ
        ]
        if different:
            raise ConfigError(f"{other.path}: another recipe ({'; '.join(different)})")


def main() -> None:
    """Read the folders, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    results = [load_results(folder) for folder in parser.parse_args().folders]
    check_same_recipe(results, ("widths", "seeds", "remainders"))
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
    print(f"smallest perfect width {found['smallest_perfect_width']}; wrote {path}")


if __name__ == "__main__":
    main()
