"""One HTML file that shows a sweep with a slider over the width, from disk, with no network.

The file holds the models' weights; the page computes interaction matrices, spectra and Fourier
transforms from them (`page/*.js`), so it can show any remainder and stays small.
"""

import base64
import html
import json
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from bilinear.errors import ConfigError
from bilinear.fourier import frequency_shares
from bilinear.interactions import interaction_matrices, logit_table

if TYPE_CHECKING:
    from bilinear.results import Results

_SCRIPTS = ("eigen.js", "model.js", "drawing.js", "page.js")
_THRESHOLD = 0.01  # share of the interaction's power from which a frequency counts as used
_MOST_FLOAT32_BYTES = 8_000_000
_MOST_BYTES = 11_000_000
# Blue to red through true white: told apart by all common kinds of colour blindness.
_NEGATIVE = ("053061", "2166ac", "4393c3", "92c5de", "d1e5f0")
_POSITIVE = ("fddbc7", "f4a582", "d6604d", "b2182b", "67001f")
_DIVERGING = (*_NEGATIVE, "ffffff", *_POSITIVE)
_SEQUENTIAL = ("ffffff", "dbe9f6", "9fcae3", "4b98c9", "1764ab", "08306b")
_SEQUENTIAL_DARK = ("1b1f25", "16375c", "1764ab", "4b98c9", "9fcae3", "ffffff")


def write_page(
    results: "Results", path: str | os.PathLike[str], *, seeds: Sequence[int] | None = None
) -> Path:
    """Write the page of a results folder to the file `path`; returns it.

    `seeds` None takes as many of the sweep's seeds, from the first, as keep the file under 15 MB;
    the page says if some are left out. Weights are kept in float32, or in float16 where that is too
    large, which the page says too. Raises ConfigError for seeds that have no model, or too many.
    """
    page = _fill(
        files("bilinear").joinpath("page/page.html").read_text("utf-8"),
        title=html.escape(f"(a + b) mod {results.config.p}, by hidden width"),
        style=_asset("page.css"),
        data=_json(page_data(results, seeds)),
        script='"use strict";\n' + "\n".join(map(_asset, _SCRIPTS)),
    )
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path


def page_data(results: "Results", seeds: Sequence[int] | None = None) -> dict[str, Any]:
    """Return what the page shows, as plain JSON values."""
    there = [seed for seed in results.config.seeds if any(job.seed == seed for job in results.jobs)]
    strange = sorted(set(seeds or ()) - set(there))
    if not there or strange:
        raise ConfigError(f"seeds: expected seeds with models, some of {there}, got {strange}")
    chosen, dtype = _fitting(results, there if seeds is None else list(seeds), seeds is None)
    jobs = [job for job in results.jobs if job.seed in chosen]
    weights = {job: weights_of(results.models[job]) for job in jobs}
    left_out = len(there) - len(chosen)
    about = f"Trained on {100 * results.config.train_frac:g} % of the pairs. "
    about += f"{left_out} more seeds are in the results folder. " if left_out else ""
    about += "Weights rounded to float16 for this page." if dtype == "float16" else ""
    rows = results.table.set_index(["d_hidden", "seed"]).to_dict("index")
    return {
        "p": results.config.p,
        "dtype": dtype,
        "about": about.strip(),
        "remainders": list(results.config.remainders) or [0],
        "threshold": _THRESHOLD,
        "diverging": colour_map(_DIVERGING).flatten().tolist(),
        "sequential": {
            "light": colour_map(_SEQUENTIAL).flatten().tolist(),
            "dark": colour_map(_SEQUENTIAL_DARK).flatten().tolist(),
        },
        "limits": {
            seed: _limits([weights[job] for job in jobs if job.seed == seed]) for seed in chosen
        },
        "models": [
            _model(job.d_hidden, job.seed, weights[job], rows[job.d_hidden, job.seed], dtype)
            for job in jobs
        ],
    }


def colour_map(stops: Sequence[str], entries: int = 257) -> np.ndarray:
    """Return uint8 (entries, 3): sRGB hex colours at even distances, linearly joined."""
    rgb = np.array([[int(stop[i : i + 2], 16) for i in (0, 2, 4)] for stop in stops])
    at = np.linspace(0, len(stops) - 1, entries)
    channels = [np.interp(at, np.arange(len(stops)), rgb[:, i]) for i in range(3)]
    return np.stack(channels, axis=1).round().astype(np.uint8)


def weights_of(state_dict: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return w_l (d, 2p), w_r (d, 2p) and w_p (p, d) of a model's state dict."""
    w_l, w_r = state_dict["bi_linear.weight"].chunk(2)
    return w_l, w_r, state_dict["projection.weight"]


def _fitting(results: "Results", seeds: list[int], may_drop: bool) -> tuple[list[int], str]:
    """Choose seeds and a number format that keep the page in its size."""
    while True:
        n = sum(job.d_hidden for job in results.jobs if job.seed in seeds) * 5 * results.config.p
        if 4 * n <= _MOST_FLOAT32_BYTES:
            return seeds, "float32"
        if 2 * n <= _MOST_BYTES or (may_drop and len(seeds) == 1):
            return seeds, "float16"
        if not may_drop:
            raise ConfigError(f"seeds: expected fewer, for a page under 15 MB, got {len(seeds)}")
        seeds = seeds[:-1]


def _limits(models: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
    """Values of full colour for all widths of a seed.

    The median over widths of what 99.5 % of a width's entries stay within: the widths that fail
    have entries a hundred times larger, and would leave the others white.
    """
    p = models[0][2].shape[0]
    some = sorted({0, p // 3, 2 * p // 3})
    views = {"q": interaction_matrices, "logits": logit_table}
    return {
        name: float(f"{np.median([_typical(view(*w, outputs=some)) for w in models]):.3g}") or 1.0
        for name, view in views.items()
    }


def _typical(values: Tensor) -> float:
    return float(np.quantile(values.abs().numpy(), 0.995))


def _model(
    d: int, seed: int, weights: tuple[Tensor, Tensor, Tensor], row: dict[Any, Any], dtype: str
) -> dict[str, Any]:
    p = weights[2].shape[0]
    flat = np.concatenate([w.numpy().ravel() for w in weights])
    shares = frequency_shares(*(w.double() for w in weights))
    return {
        "d": d,
        "seed": seed,
        "wrong": round((1 - float(row["full_acc"])) * p * p),
        "margin": float(f"{float(row['min_margin']):.4g}"),
        "shares": [round(float(s), 4) for s in shares],
        "data": base64.b64encode(flat.astype(np.dtype(dtype).newbyteorder("<"))).decode(),
    }


def _asset(name: str) -> str:
    return files("bilinear").joinpath("page", name).read_text("utf-8")


def _json(value: object) -> str:
    # Inside <script>, "</" would end the element.
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")


def _fill(template: str, **parts: str) -> str:
    for name, text in parts.items():
        template = template.replace("{{" + name + "}}", text, 1)
    return template
