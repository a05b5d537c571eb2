"""Does the fused notebook protocol reach the notebook's accuracy? `python -m bench.studies.parity`.

Both train on the same splits from independent inits by the same protocol: batches of 64, reshuffled
each epoch, the last partial batch dropped, AdamW with lr 3e-3 and weight decay 3e-4, at most 600
epochs, stop at 100 % validation accuracy. Compares the validation accuracies over seeds: means with
95 % t-intervals, and Welch's interval of their difference.
"""

import argparse
import math
from concurrent.futures import ProcessPoolExecutor
from statistics import mean, variance

import torch

from bench.measure.environment import write_result
from bilinear.cli.options import build_parser, study_from
from bilinear.experiment.record import Finished
from bilinear.training.backend import train
from bilinear.training.choose import choose

# Computing Student's t would need scipy; these degrees of freedom serve 8 seeds and more.
_T975 = {7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 11: 2.201, 12: 2.179, 13: 2.160, 14: 2.145}
_T975 |= {15: 2.131, 19: 2.093, 23: 2.069, 31: 2.040}


def t975(freedom: float) -> float:
    """Student's t at 97.5 %; rounds the degrees of freedom down to a listed number."""
    return _T975[max(k for k in _T975 if k <= freedom or k == 7)]


def final_accuracies(fused: bool, width: int, seeds: list[int], epochs: int) -> list[float]:
    """Validation accuracy of each seed at the end of its run."""
    torch.set_num_threads(1)
    options = ["--preset", "notebook", "--widths", str(width), "--epochs", str(epochs)]
    options += ["--seeds", ",".join(map(str, seeds)) + ","[len(seeds) > 1 :]]
    options += ["--fused"] if fused else []
    (config,) = study_from(build_parser().parse_args(options))
    events = train(choose(config, fused=fused, device="cpu"), config)
    ends = [e for e in events if isinstance(e, Finished)]
    return [e.record.evaluations[-1].val_acc for e in sorted(ends, key=lambda e: e.job)]


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval."""
    return mean(values), t975(len(values) - 1) * math.sqrt(variance(values) / len(values))


def main() -> None:
    """Measure, print and write bench/results/parity.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 40, 16])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=600)
    args = parser.parse_args()
    seeds = list(range(args.seeds))
    rows = []
    with ProcessPoolExecutor(2) as pool:
        for width in args.widths:
            halves = [seeds[::2], seeds[1::2]]
            jobs = [pool.submit(final_accuracies, False, width, h, args.epochs) for h in halves]
            notebook = [acc for job in jobs for acc in job.result()]
            fused = final_accuracies(True, width, seeds, args.epochs)
            (m1, h1), (m2, h2) = interval(notebook), interval(fused)
            spread = math.sqrt((variance(notebook) + variance(fused)) / args.seeds)
            half = t975(args.seeds - 1) * spread
            agree = abs(m1 - m2) <= half
            rows.append(
                {
                    "d_hidden": width,
                    "notebook": notebook,
                    "fused": fused,
                    "difference": m2 - m1,
                    "difference_half_width": half,
                    "agree": agree,
                }
            )
            print(
                f"d={width}: notebook {m1:.4f} ± {h1:.4f}, fused {m2:.4f} ± {h2:.4f}, "
                f"difference {m2 - m1:+.4f} ± {half:.4f}: {'agree' if agree else 'DIFFER'}",
                flush=True,
            )
    path = write_result("parity", {"epochs": args.epochs, "seeds": args.seeds, "widths": rows})
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
