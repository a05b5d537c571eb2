"""Recompute docs/findings.md from its results folder: `python -m bench.studies.findings`.

Prints the tables as Markdown; `--write` puts them into docs/findings.md, between its markers.
The table "two-units" compares models of two units with the closed form. The closed form's
symmetries are the frequency, the scale, and adding n both to b and to the sum. The table "chains"
is made from bench/results/narrowing-p*.json.
"""

import argparse
import json
import math
import re
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch

from bench.measure.environment import RESULTS as FIGURES
from bilinear.reading.exact_circuit import exact_circuit
from bilinear.reading.fourier import (
    ablate_frequencies,
    amplitudes,
    frequency_shares,
    keep_frequencies,
    serving_units,
    used_frequencies,
)
from bilinear.reading.interactions import logit_table, table_accuracy
from bilinear.reading.similarity import functional_similarity
from bilinear.reading.weights import Readable, Weights, weights_of
from bilinear.results.open import load_results
from bilinear.results.sweep_results import Results

DOCS = Path(__file__).parents[2] / "docs"
PAGE, RESULTS = DOCS / "findings.md", DOCS / "findings" / "results"
CHAIN, SEED = DOCS / "findings" / "chain", 4
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
    """Statistics of one model; `COLUMNS` describes each field."""

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
    """Compute the statistics of one model."""
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
    """Statistics of every model of a results folder, by width."""
    found: dict[int, list[Reading]] = {}
    for (d, _), state in sorted(results.models.items(), reverse=True):
        found.setdefault(d, []).append(read(state))
    return found


def random_model(p: int, d: int, seed: int) -> Reading:
    """Statistics of a model with random weights."""
    source = torch.Generator().manual_seed(seed)
    shapes = ((d, 2 * p), (d, 2 * p), (p, d))
    w_l, w_r, w_p = (torch.randn(*shape, generator=source) for shape in shapes)
    return read((w_l, w_r, w_p))


def closed_form(p: int, frequency: int, n: int = 0) -> Weights:
    """`exact_circuit` with b and the output class both shifted by n; also right on all pairs."""
    circuit = exact_circuit(p, frequency)
    w_l, w_r = (
        torch.cat([w[:, :p], w[:, p:].roll(n, 1)], 1) for w in (circuit["w_l"], circuit["w_r"])
    )
    return Weights(w_l, w_r, circuit["w_p"].roll(n, 0))


def likeness(model: Readable) -> float:
    """Largest cosine between a model's logits and the closed form's, over its symmetries.

    The frequency is the model's strongest; one that shares a factor with p has no closed form.
    """
    p, k = len(weights_of(model).w_p), int(frequency_shares(model).argmax())
    if math.gcd(p, k) > 1:
        return float("nan")
    forms = [closed_form(p, k, n) for n in range(p)]
    return float(functional_similarity([model, *forms])[0, 1:].max())


def least_margin(model: Readable) -> float:
    """Smallest margin over all pairs, divided by the standard deviation of the logits."""
    tables = logit_table(weights_of(model).double())
    a, b = torch.meshgrid(*[torch.arange(len(tables))] * 2, indexing="ij")
    own = tables[(a + b) % len(tables), a, b]
    others = tables.clone()
    others[(a + b) % len(tables), a, b] = -torch.inf
    return float((own - others.amax(0)).min() / (tables - tables.mean(0)).square().mean().sqrt())


def two_units() -> str:
    """Return the table of models of two units."""
    p = 64
    models: dict[str, Readable] = {
        "narrowed to 2": load_results(CHAIN).models[2, SEED],  # type: ignore[union-attr]
        "from scratch at 2": load_results(RESULTS).models[2, 0],  # type: ignore[union-attr]
        "`exact_circuit`": closed_form(p, 31),
    }
    lines = [
        "| width 2 | strongest frequency | its share of the interaction "
        "| phase error of its units [rad] | cosine with the closed form "
        "| least margin : spread of logits |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, model in models.items():
        shares, units = frequency_shares(model), serving_units(model)
        lines.append(
            f"| {name} | {int(shares.argmax())} | {shares.max():.0%} "
            f"| {units.phase.abs().max():.3f} | {likeness(model):.3f} | {least_margin(model):.1e} |"
        )
    return "\n".join(lines).replace("nan", "—")


def chains() -> str:
    """Return the table of narrowed sweeps: how many chains are right on all pairs, by width."""
    widths = [*range(2, 9), 12, 16, 24, 32]
    lines = [
        "| p, what goes | chains | " + " | ".join(map(str, widths)) + " |",
        "| --- | ---: |" + " ---: |" * len(widths),
    ]
    files = FIGURES.glob("narrowing-p*.json")
    contents = [json.loads(file.read_text()) for file in files]
    for content in sorted(contents, key=lambda content: content["recipe"]["p"]):
        for drop, found in content["drop"].items():
            perfect = {width["d_hidden"]: width["perfect"] for width in found["widths"]}
            cells = " | ".join(str(perfect[d]) for d in widths)
            n = found["widths"][0]["models"]
            lines.append(f"| {content['recipe']['p']}, {drop} | {n} | {cells} |")
    return "\n".join(lines)


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
    by_width_table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return {"by-width": by_width_table, "two-units": two_units(), "chains": chains()}


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
