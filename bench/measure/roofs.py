"""The highest rates of this machine: bytes a second of a copy, FLOP/s of a matmul.

Both are measured in the same run as the results that are compared with them. A roof is the rate of
the fastest round, because no result should exceed it. A copy counts the bytes it reads and writes.
"""

import time
from dataclasses import asdict, dataclass
from functools import cache
from statistics import median
from typing import Any

import torch

from bench.measure.clock import stopwatch

# Elements per tensor; larger than any cache: 256 MB on a CPU, 4 GB on a GPU.
_COPY = {"cpu": 2**26, "cuda": 2**30}
_MATMUL = {"cpu": 2048, "cuda": 8192}
# The arithmetics measured on a GPU (on a CPU fp32 alone): a dtype, and torch's float32 precision.
KINDS = {
    "bf16": (torch.bfloat16, "highest"),
    "tf32": (torch.float32, "high"),
    "fp32": (torch.float32, "highest"),
}
_ROUNDS, _SECONDS = 5, 1.0


@dataclass(frozen=True)
class Roof:
    """Work a second: in the fastest round, and in the median one."""

    best: float
    median: float
    rounds: int


@dataclass(frozen=True)
class Roofs:
    """Bytes a second of a copy, FLOP/s of a matmul by arithmetic ("fp32", "tf32", "bf16")."""

    copy: Roof
    matmul: dict[str, Roof]

    def least_seconds(self, flop: float, moved: float, kind: str = "fp32") -> float:
        """Lower bound of the time: the longer of arithmetic and memory traffic at the roofs."""
        return max(flop / self.matmul[kind].best, moved / self.copy.best)

    def share(self, flop: float, moved: float, seconds: float, kind: str = "fp32") -> float:
        """Fraction of the limiting roof's rate that was reached; 1 is the roof itself."""
        return self.least_seconds(flop, moved, kind) / seconds

    def to_dict(self) -> dict[str, Any]:
        """For JSON; units in the keys."""
        return {
            "copy, bytes/s": asdict(self.copy),
            "matmul, FLOP/s": {kind: asdict(roof) for kind, roof in self.matmul.items()},
        }

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> "Roofs":
        """Read what `to_dict` wrote."""
        matmul = {kind: Roof(**roof) for kind, roof in found["matmul, FLOP/s"].items()}
        return cls(Roof(**found["copy, bytes/s"]), matmul)


def measure(device: torch.device | str, *, tiny: bool = False) -> Roofs:
    """Measure both on `device`, in seconds; `tiny` only tests that it runs; ignore its rates."""
    device = torch.device(device)
    n = 2**16 if tiny else _COPY[device.type]
    size = 64 if tiny else _MATMUL[device.type]
    source = torch.randn(n, device=device)
    target = torch.empty_like(source)
    copied = 2 * n * source.itemsize
    seconds = 0.0 if tiny else _SECONDS
    copy = _roof(lambda: target.copy_(source), copied, device, seconds)
    matmul = {}
    before = torch.get_float32_matmul_precision()
    for kind in KINDS if tiny or device.type == "cuda" else ("fp32",):
        dtype, precision = KINDS[kind]
        torch.set_float32_matmul_precision(precision)
        a, b, c = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(3))
        flop = 2 * size**3
        matmul[kind] = _roof(lambda a=a, b=b, c=c: torch.mm(a, b, out=c), flop, device, seconds)
    torch.set_float32_matmul_precision(before)
    return Roofs(copy, matmul)


@cache
def measured(device: str = "cpu") -> Roofs:
    """The roofs of this run, measured at the first call."""
    return measure(device)


def _roof(run: Any, work: int, device: torch.device, for_seconds: float) -> Roof:
    once = stopwatch(device)
    once(run)
    seconds: list[float] = []
    end = time.perf_counter() + for_seconds
    while len(seconds) < _ROUNDS or (time.perf_counter() < end and len(seconds) < 100):
        seconds.append(once(run))
    return Roof(work / min(seconds), work / median(seconds), len(seconds))
