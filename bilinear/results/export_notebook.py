"""Writes results in the notebook's pickled format, for code that reads it."""

import pickle
from pathlib import Path

import torch

from bilinear.errors import ConfigError
from bilinear.results.folder import write_whole
from bilinear.results.sweep_results import Results


def write_notebook_pickle(results: Results, file: Path, seed: int | None = None) -> None:
    """Write one seed's `val_accs`, `models`, `int_mats` and `remainders` as a pickled dictionary.

    val_accs: {d_hidden: float}; models: {d_hidden: state dict}; int_mats: {d_hidden: float32 tensor
    (n_remainders, 2p, 2p)}; remainders: list of int. `seed` None takes the config's first. Raises
    ConfigError if no model has that seed or the file exists.
    """
    if seed is None:
        seed = results.config.seeds[0]
    widths = [job.d_hidden for job in results.jobs if job.seed == seed]
    if not widths:
        raise ConfigError(f"--seed: expected one of the sweep's {results.config.seeds}, got {seed}")
    if file.exists():
        raise ConfigError(f"--file: expected a new file, got {str(file)!r}, which exists")
    widths.sort(reverse=True)
    val_acc = results.table.set_index(["d_hidden", "seed"])["val_acc"]
    content = {
        "val_accs": {d: float(val_acc[d, seed]) for d in widths},
        "models": {d: results.models[d, seed] for d in widths},
        "int_mats": {d: results.interactions[d, seed].to(torch.float32) for d in widths},
        "remainders": list(results.config.remainders),
    }
    write_whole(file, pickle.dumps(content))
