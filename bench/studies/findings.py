"""Recompute docs/findings.md from its results folder: `python -m bench.studies.findings`.

Prints the tables as Markdown; `--write` puts them into docs/findings.md, between its markers.
"""

import argparse
import re
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch

from bilinear.reading.fourier import (
    ablate_frequencies,
    amplitudes,
    frequency_shares,
    keep_frequencies,
    serving_units,
    used_frequencies,
)
from bilinear.reading.interactions import logit_table, table_accuracy
from bilinear.reading.weights import Readable, weights_of
from bilinear.results.open import load_results
from bilinear.results.sweep_results import Results

DOCS = Path(__file__).parents[2] / "docs"
PAGE, RESULTS = DOCS / "findings.md", DOCS / "findings" / "results"
COLUMNS = {
    "frequencies": ("frequencies used", "{:.1f}"),
    "units": ("units per frequency", "{:.1f}"),
    "share": ("their share of the interaction", "{:.0%}"),
    "strongest": ("strongest one's share", "{:.0%}"),
    "ratio": ("amplitude, strongest : weakest used", "{:.1f}"),
    "phase": ("largest phase error [rad]", "{:.2f}"),
    "cost": ("pairs lost without the strongest", "{:.0f}"),
    "accuracy": ("accuracy", "{:.2%}"),
    "circuits": ("accuracy of the circuits alone", "{:.2%}"),
}


class Reading(NamedTuple):
    """What one model computes with; `COLUMNS` says it in words."""

    frequencies: int
    units: float
    share: float
    strongest: float
    ratio: float
    phase: float
    cost: float
    accuracy: float
    circuits: float


def read(model: Readable) -> Reading:
    """Read one model."""
    weights = weights_of(model).double()
    shares = frequency_shares(weights)
    used = used_frequencies(shares)
    amplitude = amplitudes(weights)
    tables = logit_table(weights)
    ablation = ablate_frequencies(tables)
    kept = used.nonzero()[:, 0]
    served = serving_units(weights).frequency
    size = amplitude.abs()[used]
    return Reading(
        frequencies=int(used.sum()),
        units=mean([int((served == k).sum()) for k in kept.tolist()]) if len(kept) else 0.0,
        share=float(shares[used].sum()),
        strongest=float(shares.max()),
        ratio=float(size.max() / size.min()) if len(size) else float("nan"),
        phase=float(amplitude[used].angle().abs().max()) if len(size) else float("nan"),
        cost=float(ablation.cost[shares.argmax()]) * weights.w_p.shape[0] ** 2,
        accuracy=ablation.accuracy,
        circuits=float(table_accuracy(keep_frequencies(tables, kept))),
    )


def by_width(results: Results) -> dict[int, list[Reading]]:
    """Read every model of a results folder."""
    found: dict[int, list[Reading]] = {}
    for (d, _), state in sorted(results.models.items(), reverse=True):
        found.setdefault(d, []).append(read(state))
    return found


def random_model(p: int, d: int, seed: int) -> Reading:
    """Read a model of random weights."""
    source = torch.Generator().manual_seed(seed)
    shapes = ((d, 2 * p), (d, 2 * p), (p, d))
    w_l, w_r, w_p = (torch.randn(*shape, generator=source) for shape in shapes)
    return read((w_l, w_r, w_p))


def tables(results: Results) -> dict[str, str]:
    """Return every table of the page as Markdown, by its name."""
    readings = by_width(results)
    p, seeds = results.config.p, len(results.config.seeds)
    rows = {str(d): found for d, found in readings.items()}
    rows["64, random weights"] = [random_model(p, 64, seed) for seed in range(seeds)]
    heading = ["width", *(words for words, _ in COLUMNS.values())]
    lines = [heading, ["---:"] * len(heading)]
    for name, found in rows.items():
        means = (
            form.format(mean(getattr(r, c) for r in found)) for c, (_, form) in COLUMNS.items()
        )
        lines.append([name, *(text.replace("nan", "—") for text in means)])
    return {"by-width": "\n".join(f"| {' | '.join(line)} |" for line in lines)}


def filled(page: str, found: dict[str, str]) -> str:
    """Return the page with each table between its markers replaced."""
    for name, table in found.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        page, n = re.subn(pattern, lambda m, t=table: m[1] + t + "\n" + m[2], page, flags=re.DOTALL)
        if n != 1:
            raise ValueError(f"{PAGE.name}: expected one table marked {name!r}, found {n}")
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into the page")
    args = parser.parse_args()
    found = tables(load_results(RESULTS))
    if args.write:
        PAGE.write_text(filled(PAGE.read_text("utf-8"), found), "utf-8")
    else:
        print("\n\n".join(found.values()))


if __name__ == "__main__":
    main()
