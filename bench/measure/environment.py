"""Describes the machine, versions and commit of a result, and writes the result's file."""

import json
import os
import platform
import subprocess
from pathlib import Path
from statistics import median
from typing import Any

import torch

RESULTS = Path(__file__).parents[1] / "results"
_CPUINFO = Path("/proc/cpuinfo")
_GPU_CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit")


def environment() -> dict[str, Any]:
    """Processor, cores, GPU if there is one, versions and commit."""
    git = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    found: dict[str, Any] = {
        "device": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit or "unknown",
    }
    if torch.cuda.is_available():
        found |= {"gpu": torch.cuda.get_device_name(), "driver": _nvidia_smi("driver_version")}
    return found


def clocks() -> dict[str, Any]:
    """Current clocks: MHz of the cores, and of a GPU by nvidia-smi. Changes no setting."""
    mhz = [float(value) for value in _cpuinfo("cpu MHz")]
    found: dict[str, Any] = {
        "cpu MHz": {"least": min(mhz), "median": median(mhz), "most": max(mhz)} if mhz else None
    }
    if torch.cuda.is_available():
        found["gpu"] = {name: _nvidia_smi(name) for name in _GPU_CLOCKS}
    return found


def _nvidia_smi(field: str) -> str:
    query = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "no nvidia-smi here"
    return done.stdout.strip()


def _cpuinfo(key: str) -> list[str]:
    if not _CPUINFO.exists():
        return []
    lines = _CPUINFO.read_text().splitlines()
    return [line.partition(":")[2].strip() for line in lines if line.startswith(key)]


def _processor() -> str:
    names = _cpuinfo("model name")
    return names[0] if names else platform.processor()


def write_result(name: str, content: dict[str, Any]) -> Path:
    """Write one result with its environment, as bench/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"environment": environment(), **content}, indent=2) + "\n")
    return path
