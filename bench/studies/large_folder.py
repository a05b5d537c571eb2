"""How fast does a folder of 100,000 models open? `python -m bench.studies.large_folder`.

The folder is synthetic: random weights of the real sizes (P = 64, widths 64 to 1, a learning curve
of 600 evaluations each), written by the library's own writer. Opening and reading are timed in new
processes, once with the page cache unchanged and once after dropping the folder from it.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from bench.measure.environment import write_result
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.record import Finished, Job, Record, Weights
from bilinear.results.folder import open_folder
from bilinear.results.open import load_results
from bilinear.results.writer import ResultsWriter

READ = """
import json, random, sys, time
from bilinear import load_results
start = time.perf_counter()
results = load_results(sys.argv[1])
opened = time.perf_counter() - start
jobs = random.Random(0).sample(results.jobs, 200)
each = []
for job in jobs:
    start = time.perf_counter()
    results.models[job]
    each.append(time.perf_counter() - start)
start = time.perf_counter()
table = results.table
print(json.dumps({
    "open": opened, "models": each, "table": time.perf_counter() - start, "rows": len(table)
}))
"""


def make(folder: Path, config: SweepConfig) -> dict[str, float]:
    """Fill a folder; return the seconds and peak memory of writing the models and the table."""
    rows = random.Random(0)
    begun = Record(config)
    for step in range(config.eval_every, config.steps, config.eval_every):
        begun.add(step, rows.random(), rows.random(), 3000, 900, -rows.random())
    writer = ResultsWriter(open_folder(folder), config, {"backend": "synthetic"})
    p, spent = config.p, 0.0
    for d in config.widths:
        weights = torch.randn(d, 2 * p), torch.randn(d, 2 * p), torch.randn(p, d)
        for seed in config.seeds:
            record = Record(config, begun.evaluations.copy())
            right = config.n_train, rows.randint(700, config.p**2 - config.n_train)
            record.add(config.steps, rows.random(), rows.random(), *right, -rows.random())
            start = time.perf_counter()
            writer.write_model(Finished(Job(d, seed), record, Weights(*weights)))
            spent += time.perf_counter() - start
    peak = peak_bytes()
    start = time.perf_counter()
    writer.finish()
    seconds = time.perf_counter() - start
    return {
        "models_written_seconds": spent,
        "finish_seconds": seconds,
        "peak_bytes_writing": peak,
        "peak_bytes_finishing": peak_bytes(),
    }


def peak_bytes() -> int:
    """Peak resident memory of this process so far, imported modules included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read(folder: Path) -> dict:
    """In a new process, time opening, reading 200 random models, and reading the table."""
    line = [sys.executable, "-c", READ, str(folder)]
    return json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)


def drop_from_cache(folder: Path) -> None:
    """Drop the folder from the page cache, so that the next read comes from the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    """Make, measure, print and write bench/results/large_folder.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=100_000)
    parser.add_argument("--keep", type=Path, help="reuse this folder, or create and keep it")
    args = parser.parse_args()
    seeds = tuple(range(-(-args.models // 64)))
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary) / "large"
        made: dict[str, float] = {}
        if not folder.exists():
            made = make(folder, SweepConfig(seeds=seeds, remainders=()))
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        found: dict[str, Any] = {"models": len(load_results(folder).jobs), "files": len(sizes)}
        found |= made
        found |= {"bytes": sum(sizes), "table_bytes": (folder / "table.parquet").stat().st_size}
        for cache in ("as it is", "dropped"):
            runs = []
            for _ in range(5):
                if cache == "dropped":
                    drop_from_cache(folder)
                runs.append(read(folder))
            each = [seconds for run in runs for seconds in run["models"]]
            found[f"cache {cache}"] = {
                "open_seconds": [run["open"] for run in runs],
                "table_seconds": [run["table"] for run in runs],
                "model_median_seconds": median(each),
                "model_p95_seconds": quantiles(each, n=20)[-1],
                "model_worst_seconds": max(each),
            }
            print(cache, found[f"cache {cache}"])
        print(f"{found['models']:,} models, {found['bytes'] / 1e9:.1f} GB, {made}")
        print(f"wrote {write_result('large_folder', found)}")


if __name__ == "__main__":
    main()
