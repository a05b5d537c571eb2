"""How much longer does a study take on Ray? `python -m bench.studies.ray_overhead`.

Runs one study by two commands in turns: `--engine local` on all cores of this machine, and
`--engine ray` on a local cluster with one single-core node per core. Each command is timed from
cold start to finished folder. The time to start the cluster and its agents is not counted, and the
cluster is stopped before the local command, since both use the same cores. Both folders must be
equal in every bit.
"""

import argparse
import filecmp
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from bench.measure.clock import sweep_seconds
from bench.measure.environment import write_result
from bilinear.results.open import load_results

STUDY = ("--device", "cpu", "--p", "59,64", "--seeds", "3")
AGENTS_START_SECONDS = 15.0


def timed(out: Path, *engine: str) -> float:
    """Seconds of the study's command."""
    return sweep_seconds(*STUDY, "--out", str(out), "--engine", *engine)


@contextmanager
def cluster(nodes: int) -> Iterator[str]:
    """Start a head without cores and `nodes` nodes of one core; yield the cluster's address."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "num_gpus": 0, "include_dashboard": False}
    started = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            started.add_node(num_cpus=1, num_gpus=0)
        time.sleep(AGENTS_START_SECONDS)
        yield started.address
    finally:
        started.shutdown()


def different_files(ours: Path, theirs: Path) -> list[str]:
    """Names of files that only one folder has, or that are not equal in both."""
    a, b = ({str(f.relative_to(x)) for f in x.rglob("*") if f.is_file()} for x in (ours, theirs))
    _, different, unreadable = filecmp.cmpfiles(ours, theirs, sorted(a & b), shallow=False)
    return sorted(a ^ b) + different + unreadable


def one_round(cores: int) -> tuple[float, float, int]:
    """Run and compare both; return the local seconds, Ray's seconds and the number of models."""
    with tempfile.TemporaryDirectory() as folder:
        local, on_ray = Path(folder) / "local", Path(folder) / "ray"
        local_seconds = timed(local, "local")
        with cluster(cores) as address:
            ray_seconds = timed(on_ray, "ray", "--ray-address", address)
        different = different_files(local, on_ray)
        if different:
            raise AssertionError(f"expected the files of the local run, got different {different}")
        return local_seconds, ray_seconds, len(load_results(local).table)


def main() -> None:
    """Measure, print and write bench/results/ray_overhead.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    rounds = []
    for _ in range(args.rounds):
        rounds.append(one_round(cores))
        print("local {:.1f} s, on Ray {:.1f} s, {} models".format(*rounds[-1]), flush=True)
    ratios = [on_ray / local for local, on_ray, _ in rounds]
    print(f"Ray takes {median(ratios):.3f} of the local time")
    found = {
        "study": ["--fused", *STUDY],
        "models": rounds[0][2],
        "ray_nodes_of_one_core": cores,
        "local_seconds": [local for local, _, _ in rounds],
        "ray_seconds": [on_ray for _, on_ray, _ in rounds],
        "ratio": median(ratios),
        "same_bits": True,
    }
    print(f"wrote {write_result('ray_overhead', found)}")


if __name__ == "__main__":
    main()
