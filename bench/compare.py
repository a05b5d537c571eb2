"""Lists what became slower from one results file to another: `python -m bench.compare OLD NEW`.

Reads the files that `pytest bench --benchmark-json FILE` and `python -m bench.gpu` write. A
benchmark counts as slower if the spreads do not overlap: the new rounds' lower quartile is above
the old rounds' upper one (in a file of bench.gpu, 10th and 90th percentile). Exits with 1 if any
benchmark is slower.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Timing:
    """Seconds: the median of the rounds, and the lower and upper end of their spread."""

    median: float
    low: float
    high: float


def timings(content: dict[str, Any]) -> dict[str, Timing]:
    """Return the timings in a results file, by benchmark.

    Raises:
        ValueError: the file has neither benchmarks nor rows of times.
    """
    if "benchmarks" in content:
        return {
            benchmark["fullname"]: Timing(*(benchmark["stats"][k] for k in ("median", "q1", "q3")))
            for benchmark in content["benchmarks"]
        }
    if "rows" not in content:
        raise ValueError(f"results: expected 'benchmarks' or 'rows', got {sorted(content)}")
    return {
        f"{_label(row)} {way}": Timing(time["median"], time["p10"], time["p90"])
        for row in content["rows"]
        for way, time in row["times"].items()
    }


def slower(old: dict[str, Timing], new: dict[str, Timing]) -> dict[str, float]:
    """Return the benchmarks that became slower beyond the spread, with new time / old time."""
    return {
        name: new[name].median / old[name].median
        for name in old.keys() & new.keys()
        if new[name].low > old[name].high and new[name].median > old[name].median
    }


def changed_roofs(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """List the roofs that differ by more than a tenth: the machines differ in speed."""
    rates = [_rates(content) for content in (old, new)]
    return [
        f"{name}: {rates[0][name]:.3g} -> {rates[1][name]:.3g}"
        for name in sorted(rates[0].keys() & rates[1].keys())
        if abs(rates[1][name] / rates[0][name] - 1) > 0.1
    ]


def _rates(content: dict[str, Any]) -> dict[str, float]:
    roofs = content.get("machine_info", {}).get("roofs", {}).get("cpu") or content.get("roofs", {})
    found = {f"matmul {kind}": roof for kind, roof in roofs.get("matmul, FLOP/s", {}).items()}
    if "copy, bytes/s" in roofs:
        found["copy"] = roofs["copy, bytes/s"]
    return {name: roof["best"] for name, roof in found.items()}


def _label(row: dict[str, Any]) -> str:
    return " ".join(f"{k}={v}" for k, v in row.items() if isinstance(v, (str, int, list)))


def _device(content: dict[str, Any]) -> object:
    return content.get("machine_info", content.get("environment", {})).get("device")


def main(arguments: list[str] | None = None) -> int:
    """Print what became slower; returns 1 if anything did, 2 if no benchmark is in both files."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    chosen = parser.parse_args(arguments)
    contents = [json.loads(path.read_text()) for path in (chosen.old, chosen.new)]
    if _device(contents[0]) != _device(contents[1]):
        print(f"different devices: {_device(contents[0])}, {_device(contents[1])}")
    for line in changed_roofs(*contents):
        print(f"the machine itself, at best: {line}")
    old, new = (timings(content) for content in contents)
    common = old.keys() & new.keys()
    if not common:
        print("no benchmark is in both files")
        return 2
    found = slower(old, new)
    for name, factor in sorted(found.items(), key=lambda item: -item[1]):
        print(f"{factor:.2f}x  {old[name].median:.3g} s -> {new[name].median:.3g} s  {name}")
    print(f"{len(found)} of {len(common)} slower beyond the spread")
    for what, names in (("only in OLD", old.keys() - common), ("only in NEW", new.keys() - common)):
        if names:
            print(f"{what}: {len(names)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
