"""One self-contained HTML page with a slider over the widths of a sweep.

The page holds weights as 24-bit floats, from which the browser computes interaction matrices, logit
tables and Fourier pictures; eigenpairs and shares of frequencies are computed here. It loads
nothing from a network. The scripts draw on canvas and SVG: a redraw by plotly.js took 18 ms a
chart, and its code made half of the page.
"""

import base64
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilinear.errors import ConfigError, ResultsError
from bilinear.experiment.config import NOTEBOOK_REMAINDERS
from bilinear.experiment.record import Job
from bilinear.reading.fourier import (
    amplitudes,
    cross_spectrum,
    frequency_shares,
    serving_units,
    units_per_frequency,
)
from bilinear.reading.interactions import cross_block, interaction_matrices, logit_table
from bilinear.reading.similarity import functional_similarity
from bilinear.reading.spectra import eigenpairs
from bilinear.reading.weights import Weights, weights_of
from bilinear.results.folder import write_whole
from bilinear.results.sweep_results import Results

SIZE_LIMIT = 15_000_000  # bytes
N_VECTORS = 4  # top eigenvectors of each matrix in the page
N_EVALUATIONS = 120  # points of a learning curve


@dataclass(frozen=True)
class Page:
    """A page: its HTML, the seeds and remainders in it, and the seeds left out for its size."""

    html: bytes
    seeds: tuple[int, ...]
    seeds_left_out: tuple[int, ...]
    remainders: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.html)


def make_page(
    results: Results,
    *,
    widths: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    remainders: Sequence[int] | None = None,
) -> Page:
    """Make the page of a results folder.

    `widths` None takes all; `seeds` None as many of the first as stay under `SIZE_LIMIT`, at least
    one; `remainders` None those whose interaction matrices the sweep kept, or the notebook's if it
    kept none. Raises ConfigError for a width, seed or remainder that is not there, ResultsError for
    a folder without models.
    """
    if not results.jobs:
        raise ResultsError(f"{results.folder}: no model has ended yet")
    remainders = _chosen_remainders(results, remainders)
    there = sorted({job.seed for job in results.jobs})
    wanted = _some_of("seeds", there, seeds)
    shown = set(_some_of("widths", sorted({job.d_hidden for job in results.jobs}), widths))
    jobs = [job for job in results.jobs if job.d_hidden in shown]
    if seeds is None:
        wanted = wanted[: _affordable(results.config.p, jobs, wanted, len(remainders))]
    jobs = [job for job in jobs if job.seed in set(wanted)]
    with _one_thread():
        html = _fill(page_data(results, jobs, wanted, remainders))
    left_out = tuple(seed for seed in there if seed not in wanted)
    return Page(html, tuple(wanted), left_out, tuple(remainders))


def write_page(
    results: Results,
    path: str | os.PathLike[str],
    *,
    widths: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    remainders: Sequence[int] | None = None,
) -> Page:
    """Write the page that `make_page` makes to `path`, replacing what is there."""
    page = make_page(results, widths=widths, seeds=seeds, remainders=remainders)
    write_whole(Path(path), page.html)
    return page


def _some_of(name: str, there: Sequence[int], wanted: Sequence[int] | None) -> list[int]:
    chosen = list(there if wanted is None else dict.fromkeys(wanted))
    if not chosen or not set(chosen) <= set(there):
        raise ConfigError(f"{name}: expected some of {list(there)}, got {chosen}")
    return chosen


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: for such small matrices several took ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _chosen_remainders(results: Results, remainders: Sequence[int] | None) -> list[int]:
    p = results.config.p
    if remainders is None:
        kept = results.config.remainders[: len(NOTEBOOK_REMAINDERS)]
        remainders = kept or [r for r in NOTEBOOK_REMAINDERS if r < p]
    chosen = list(dict.fromkeys(remainders))
    if not chosen or not all(0 <= r < p for r in chosen):
        raise ConfigError(f"remainders: expected some of 0 … {p - 1}, got {chosen}")
    return chosen


def _affordable(p: int, jobs: Sequence[Job], seeds: Sequence[int], n_remainders: int) -> int:
    """How many of the first seeds fit in SIZE_LIMIT by the sizes of their arrays, at least one."""
    size = len(_fill({}))
    for n, seed in enumerate(seeds):
        widths = [job.d_hidden for job in jobs if job.seed == seed]
        values = sum(n_remainders * min(2 * d, 2 * p) + p + 3 * N_EVALUATIONS for d in widths)
        vectors = len(widths) * n_remainders * N_VECTORS * 2 * p
        weights = sum(widths) * 5 * p
        size += (16 * (values + len(widths) ** 2) + 8 * vectors) // 3 + 4 * weights
        size += 600 * len(widths) + 20 * sum(widths)
        if n and size > SIZE_LIMIT:
            return n
    return len(seeds)


def page_data(
    results: Results, jobs: Sequence[Job], seeds: Sequence[int], remainders: Sequence[int]
) -> dict[str, object]:
    """All that the page shows of these models, for JSON, with arrays in base64."""
    p = results.config.p
    rows = json.loads(results.table.to_json(orient="records"))
    weights = {job: weights_of(results.models[job]) for job in jobs}
    widths = sorted({job.d_hidden for job in jobs}, reverse=True)
    similarity = {}
    for seed in seeds:
        mine = [weights[job] for d in widths for job in jobs if job == (d, seed)]
        similarity[str(seed)] = _pack(functional_similarity(mine))
    return {
        "p": p,
        "widths": widths,
        "seeds": list(seeds),
        "remainders": list(remainders),
        "rows": [row for row in rows if (row["d_hidden"], row["seed"]) in set(jobs)],
        "all_rows": [[row["d_hidden"], row["seed"], row["full_acc"]] for row in rows],
        "train_frac": results.config.train_frac,
        "eval_every": results.config.eval_every,
        "narrowed": results.config.narrow is not None,
        "limits": _limits([weights[job] for job in _setting_the_scale(rows, jobs)], remainders),
        "similarity": similarity,
        "models": {
            f"{job.d_hidden}-{job.seed}": _model_data(
                weights[job], _history(results, job), remainders
            )
            | _units_data(results, job, weights[job])
            for job in jobs
        },
    }


def _setting_the_scale(rows: list[dict[str, Any]], jobs: Sequence[Job]) -> list[Job]:
    """Jobs with at least 99 % of pairs right, if any: models that fail have far larger entries."""
    good = {Job(row["d_hidden"], row["seed"]) for row in rows if row["full_acc"] >= 0.99}
    return [job for job in jobs if job in good] or list(jobs)


def _model_data(weights: Weights, history: Tensor, remainders: Sequence[int]) -> dict[str, object]:
    pairs = eigenpairs(weights, remainders, dtype=torch.float64)
    top = pairs.vectors[..., :N_VECTORS].mT
    # A sign is arbitrary: the entry of largest magnitude is shown positive.
    peak = top.gather(-1, top.abs().argmax(dim=-1, keepdim=True))
    return {
        "weights": pack24(torch.cat([w.flatten() for w in weights])),
        "eigenvalues": _pack(pairs.values),
        "eigenvectors": _pack_unit(top * peak.sign()),
        "n_vectors": top.shape[-2],
        "shares": _pack(frequency_shares(weights)[1:]),
        "amplitudes": _pack(amplitudes(weights)[1:].abs()),
        "units": units_per_frequency(weights)[1:].tolist(),
        "history": _pack(history),
    }


def _units_data(results: Results, job: Job, weights: Weights) -> dict[str, object]:
    """For a narrowed model: names, frequencies, phases and relative amplitudes of its units."""
    if results.config.narrow is None:
        return {}
    served = serving_units(weights)
    kept = {
        "names": results.units[job].tolist(),
        "frequencies": served.frequency.tolist(),
        "phases": _pack(served.phase),
        "amplitudes": _pack(served.relative_amplitude),
    }
    return {"units_kept": kept}


def _limits(models: Sequence[Weights], remainders: Sequence[int]) -> dict[str, list[float]]:
    """The value that has the full colour, for each picture and remainder.

    It is 1.5 times the median over models of the 99.5th percentile of |entries|. A maximum, or the
    percentile over all models, would be that of the few models whose entries are largest. In the
    full matrix only entries that a pair meets count; the page draws the others faintly.
    """
    chosen = list(remainders)
    views = {
        "full": lambda w: _entries_that_pairs_meet(interaction_matrices(w, chosen)),
        "functional": lambda w: logit_table(w, chosen),
        "spectrum": lambda w: cross_spectrum(2 * cross_block(w, chosen)),
    }
    limits = {}
    for name, view in views.items():
        entries = torch.stack([view(w).abs().flatten(1) for w in models])
        rank = max(1, round(0.995 * entries.shape[-1]))
        typical = entries.kthvalue(rank, dim=-1).values.median(dim=0).values
        limits[name] = (1.5 * typical).tolist()
    return limits


def _entries_that_pairs_meet(q: Tensor) -> Tensor:
    """The block where a meets b, and the diagonal: (n, p² + 2p) of (n, 2p, 2p)."""
    p = q.shape[-1] // 2
    return torch.cat([q[:, :p, p:].flatten(1), q.diagonal(dim1=1, dim2=2)], dim=1)


def _history(results: Results, job: Job) -> Tensor:
    """Steps, loss on the training pairs, on the others: (3, n), n at most N_EVALUATIONS."""
    table = results.histories[job][["step", "train_loss", "val_loss"]]
    rows = np.geomspace(1, len(table), min(len(table), N_EVALUATIONS)).round().astype(int)
    return torch.tensor(table.to_numpy(dtype=float)[np.unique(rows) - 1].T)


def _numbers(tensor: Tensor, dtype: str) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().cpu().double().numpy().astype(dtype))


def _pack(tensor: Tensor) -> str:
    """Little-endian float32 in base64."""
    return base64.b64encode(_numbers(tensor, "<f4").tobytes()).decode()


def pack24(tensor: Tensor) -> str:
    """The upper three bytes of little-endian float32, rounded, in base64: relative error 2⁻¹⁶."""
    bits = _numbers(tensor, "<f4").view("<u4").astype(np.uint64) + 0x80
    upper = (bits >> 8).astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3]
    return base64.b64encode(upper.tobytes()).decode()


def _pack_unit(tensor: Tensor) -> str:
    """Numbers from −1 to 1 in steps of 1 / 32767, in base64."""
    return base64.b64encode(_numbers((tensor * 32767).round(), "<i2").tobytes()).decode()


def _fill(content: dict[str, Any]) -> bytes:
    """Replace each marker in the template by the data, or by the file that it names."""
    folder = files("bilinear") / "page"

    def part(marker: re.Match[str]) -> str:
        if marker[1] == "DATA":  # as JSON in which nothing looks like HTML
            return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
        return (folder / marker[1]).read_text(encoding="utf-8")

    template = (folder / "page.html").read_text(encoding="utf-8")
    return re.sub(r"/\*(DATA|\w+\.(?:css|js))\*/", part, template).encode()
