"""How long does a chain take? `python -m bench.studies.chain_time [ROUNDS]`.

Times whole commands as a user runs them, from cold start to finished folder. For each of a few
seeds it runs one narrowed sweep from 64 units to 2, then the default sweep of independent widths.
A chain's time depends on its seed: each failed try to drop a unit costs time.
"""

import sys
import tempfile
from pathlib import Path
from statistics import median

from bench.measure.clock import sweep_seconds
from bench.measure.environment import write_result

CHAIN, INDEPENDENT = ("--narrow", "--widths", "64..2"), ()


def seconds(options: tuple[str, ...], seed: int) -> float:
    """Wall-clock seconds of the whole command for one seed."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "run")
        return sweep_seconds(*options, "--seeds", f"{seed}..{seed}", "--out", out)


def main() -> None:
    """Measure, print and write bench/results/chain_time.json."""
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else 4)
    chain, independent = [], []
    for seed in seeds:
        chain.append(seconds(CHAIN, seed))
        independent.append(seconds(INDEPENDENT, seed))
        print(f"seed {seed}: chain {chain[-1]:.1f} s, independent {independent[-1]:.1f} s")
    ratio = median(chain) / median(independent)
    path = write_result(
        "chain_time",
        {
            "chain": f"python sweep.py --fused {' '.join(CHAIN)}",
            "independent": "python sweep.py --fused",
            "seeds": list(seeds),
            "chain_seconds": chain,
            "independent_seconds": independent,
            "ratio_of_medians": ratio,
        },
    )
    print(f"ratio {ratio:.2f}; wrote {path}")


if __name__ == "__main__":
    main()
