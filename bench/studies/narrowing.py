"""How far can trained models narrow? `python -m bench.studies.narrowing FOLDER [FOLDER …]`.

Gathers the finished chains of narrowed sweeps into bench/results/narrowing-pP.json, one entry for
each rule that chooses the unit to drop. By width, an entry holds the share of chains whose model is
right on all p² pairs, with its 95 % Wilson interval. Every model's answers are checked a second
time by `margins` below, which shares no code with the library. If bench/results/frontier-pP.json
exists, a figure also compares these shares with those of models trained from scratch.
"""

import argparse
import json
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.numpy
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.measure.environment import RESULTS, write_result
from bench.studies.frontier_study import check_same_recipe
from bilinear.errors import ConfigError
from bilinear.experiment.narrowing import Narrowing
from bilinear.experiment.record import Weights
from bilinear.plots import NOTEBOOK_PERFECT_WIDTHS
from bilinear.results.frontier import frontier
from bilinear.results.open import load_results
from bilinear.results.sweep_results import Results
from bilinear.training.drops import living


def margins(weights: dict[str, np.ndarray], dtype: type) -> np.ndarray:
    """Logit of (a + b) mod p less the largest other one, (p, p), all arithmetic in `dtype`."""
    w_l, w_r = np.split(weights["bi_linear.weight"].astype(dtype), 2)
    w_p = weights["projection.weight"].astype(dtype)
    p = len(w_p)
    left, right = (w[:, :p, None] + w[:, None, p:] for w in (w_l, w_r))
    logits = np.tensordot(w_p, left * right, 1)
    a, b = np.indices((p, p))
    own = logits[(a + b) % p, a, b].copy()
    logits[(a + b) % p, a, b] = -np.inf
    return own - logits.max(0)


def files(results: Results) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Name and tensors of every model's file, loose or in a pack, as safetensors has them."""
    for path in sorted(results.path.glob("models/*.safetensors")):
        yield path.stem, safetensors.numpy.load_file(path)
    for path in sorted(results.path.glob("packs/*.zip")):
        with zipfile.ZipFile(path) as pack:
            for name in pack.namelist():
                if name.endswith(".safetensors"):
                    yield Path(name).stem, safetensors.numpy.load(pack.read(name))


def from_file(tensors: dict[str, np.ndarray]) -> Weights:
    """The model of a file's tensors."""
    w_l, w_r = torch.from_numpy(tensors["bi_linear.weight"]).chunk(2)
    return Weights(w_l, w_r, torch.from_numpy(tensors["projection.weight"]))


def judged(results: Results) -> pd.DataFrame:
    """Rows of finished chains, with right answers recounted in two precisions; ties are wrong."""
    table = pd.DataFrame(results.rows())
    whole = table.groupby("seed").size() == len(results.config.widths)
    rows = []
    for stem, weights in files(results):
        seed = int(stem.partition("-s")[2])
        if not whole.get(seed, False):
            continue
        exact = margins(weights, np.float64)
        rows.append(
            {
                "d_hidden": len(weights["bi_linear.weight"]) // 2,
                "seed": seed,
                "right_float32": int((margins(weights, np.float32) > 0).sum()),
                "right_float64": int((exact > 0).sum()),
                "least_margin": float(exact.min()),
                "working_units": sum(living(from_file(weights))),
            }
        )
    return table.merge(pd.DataFrame(rows), on=["d_hidden", "seed"], validate="1:1")


def gathered(tables: list[pd.DataFrame]) -> dict[str, Any]:
    """Shares by width of chains of one kind, with the results of the second check."""
    table = pd.concat(tables).drop_duplicates(["d_hidden", "seed"])
    found = frontier(table)
    pairs = (table["right_float64"] / table["full_acc"]).round().mode()[0]
    for width in found["widths"]:
        mine = table[(table.d_hidden == width["d_hidden"]) & table.perfect]
        width["perfect_float32"] = int((mine.right_float32 == pairs).sum())
        width["perfect_float64"] = int((mine.right_float64 == pairs).sum())
        width["least_margin"] = float(mine.least_margin.min()) if len(mine) else None
        every = mine.working_units == width["d_hidden"]
        width["perfect_with_every_unit_working"] = int(every.sum())
        width["most_tries"] = int(table[table.d_hidden == width["d_hidden"]].tries.max())
    return found


def command(results: Results, chains: int) -> str:
    """The command that trains the models of a folder again."""
    config = results.config
    assert config.narrow is not None
    usual, narrow = Narrowing(), config.narrow
    names = [n for n in ("tries", "redraws") if getattr(narrow, n) != getattr(usual, n)]
    options = "".join(f"--{name} {getattr(narrow, name)} " for name in names)
    return (
        f"python sweep.py --fused --narrow --drop {narrow.drop} {options}--p {config.p} "
        f"--widths {max(config.widths)}..{min(config.widths)} --seeds {chains}"
    )


def draw(kinds: dict[str, dict[str, Any]], scratch: list[dict[str, Any]], p: int, ax: Axes) -> Axes:
    """Share of perfect models against width, narrowed and from scratch, with intervals."""
    lines = [("from scratch", scratch, "#898989", "s")]
    names = {
        "circuit": "narrowed",
        "loss": "the unit least missed, one way",
        "random": "a random unit, one way",
        "norm": "by norm",
    }
    colours = {"circuit": "#C85200", "loss": "#FF800E", "random": "#5F9ED1", "norm": "#006BA4"}
    lines += [(names[kind], kinds[kind]["widths"], colours[kind], "o") for kind in kinds]
    ticks = [2, 3, 4, 5, 6, 8, 12, 16, 24, 32]
    for label, widths, colour, marker in lines:
        shown = [w for w in widths if w["d_hidden"] <= 40]
        d, share, low, high = (
            np.array([w[key] for w in shown])
            for key in ("d_hidden", "share", "wilson_low", "wilson_high")
        )
        ax.fill_between(d, low, high, color=colour, alpha=0.18, lw=0)
        ax.plot(d, share, color=colour, marker=marker, ms=4, label=label)
        if label == names["circuit"]:
            # Narrow models only: in wider ones weight decay drives units to zero, needed or not.
            few = [w for w in shown if w["d_hidden"] <= 16]
            working = [w["perfect_with_every_unit_working"] / w["models"] for w in few]
            at = [w["d_hidden"] for w in few]
            ax.plot(at, working, color=colour, lw=1, ls="--", label=f"{label}, every unit working")
    if p == 64:
        smallest = min(NOTEBOOK_PERFECT_WIDTHS)
        ax.axvline(smallest, color="black", lw=1, ls=":")
        ax.annotate(
            f"the notebook's\nsmallest: {smallest}",
            (smallest, 0.03),
            ha="right",
            xytext=(-6, 0),
            textcoords="offset points",
        )
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, list(map(str, ticks)))
    ax.minorticks_off()
    ax.set_xlabel("hidden width")
    ax.set_ylabel(f"share of models right on all {p * p:,} pairs")
    ax.set_ylim(-0.02, 1.03)
    ax.grid(alpha=0.3)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return ax


def main() -> None:
    """Read the folders, write the JSON and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    groups: dict[str, list[Results]] = defaultdict(list)
    for folder in parser.parse_args().folders:
        results = load_results(folder)
        if not isinstance(results, Results) or results.config.narrow is None:
            raise ConfigError(f"{folder}: expected a narrowed sweep")
        groups[results.config.narrow.drop].append(results)
    for found in groups.values():
        check_same_recipe(found, ("seeds", "remainders"))
    some = next(iter(groups.values()))[0].config
    tables = {drop: [judged(r) for r in folders] for drop, folders in groups.items()}
    kinds = {drop: gathered(of_drop) for drop, of_drop in tables.items()}
    path = write_result(
        f"narrowing-p{some.p}",
        {
            "recipe": json.loads(replace(some, seeds=(0,)).to_json()),
            "commands": [
                command(results, table.seed.nunique())
                for drop, folders in groups.items()
                for results, table in zip(folders, tables[drop], strict=True)
            ],
            "drop": kinds,
        },
    )
    print(f"wrote {path}")
    scratch = RESULTS / f"frontier-p{some.p}.json"
    if scratch.exists():
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        draw(kinds, json.loads(scratch.read_text())["widths"], some.p, figure.subplots())
        FigureCanvasAgg(figure)
        figure.savefig(path.with_suffix(".png"), dpi=100)


if __name__ == "__main__":
    main()
