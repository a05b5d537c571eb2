"""Models one multiprocessor's scheduler on a loop of Hopper machine code: cycles and waits.

A multiprocessor has four equal schedulers, and a program's warps are distributed evenly, so the
model simulates one scheduler with a quarter of the warps. Each warp issues in order, once its stall
cycles are over and the unit and the scoreboards it waits for are free. A scheduler issues one
instruction a cycle, from the warp that can issue first; among equals, from the one that waited
longest. Latencies and rates are from public microbenchmarks and NVIDIA's tables of throughput, and
caches always hit. The model is accurate to about a third. It serves to compare two versions of a
loop and to find what a loop waits for. Its results are not measurements.
"""

import re
from collections import Counter
from dataclasses import dataclass, field

from bench.model.machine_code import Instruction, Loop

# Unit, cycles for which a warp's instruction occupies it, and cycles until the result is ready.
_ALU = ("alu", 2.0, 5)
_UNITS = {
    "FMA": ("fma", 1.0, 4),
    "ALU": _ALU,
    "MUFU": ("xu", 8.0, 20),
    "convert": ("xu", 8.0, 20),
    "shuffle": ("memory", 4.0, 24),
    "shared": ("memory", 4.0, 30),
    "global": ("memory", 4.0, 40),
    "spill": ("memory", 4.0, 40),
    "uniform": ("uniform", 2.0, 10),
    "branch": ("branch", 2.0, 6),
    "barrier": ("sync", 1.0, 6),
    "tensor": ("tensor", 0.0, 0),
}
_BAR_CYCLES = 22
_FENCE_CYCLES = 12
_TENSOR_LATENCY = 24
# Cycles a second of an H200 under load, to convert cycles to seconds.
CLOCK = 1.755e9
_TURNS = 6
_COUNTED_FROM = 2


@dataclass(frozen=True)
class Modelled:
    """One iteration of a loop: its cycles, busy tensor core cycles, issue slots used, and waits.

    `waits` counts the cycles without an issue, by the cause that delayed the warp that issued next.
    """

    cycles: float
    tensor: float
    issued: int
    waits: dict[str, float]


@dataclass
class _Warp:
    program: int
    at: int = 0
    free: float = 0.0  # when its stall cycles are over
    last: float = 0.0  # time of its last issue
    boards: dict[int, tuple[float, str]] = field(default_factory=dict)
    tensor_done: float = 0.0
    turns: list[float] = field(default_factory=list)
    arrived: float | None = None  # time at which it reached a barrier


def tensor_cycles(one: Instruction) -> float:
    """Cycles of a warpgroup's matmul; multiplying or reading shared memory limits the rate."""
    shape = re.search(r"64x(\d+)x", one.opcode)
    if shape is None:
        return 16.0
    columns = int(shape[1])
    left = one.text.split(",")[1].strip()
    read = columns / 4 + (0 if left.startswith("R") else 16)
    return max(columns / 2, read, 8.0)


def model(loop: Loop, warps: int, programs: int = 1) -> Modelled:
    """Model one iteration with `programs` of `warps` warps each on a multiprocessor."""
    return _Scheduler(loop, max(1, warps // 4), programs).run()


class _Scheduler:
    def __init__(self, loop: Loop, warps: int, programs: int) -> None:
        self._body = loop.body
        self._warps = [_Warp(program) for program in range(programs) for _ in range(warps)]
        self._units: Counter[str] = Counter()
        self._now = 0.0
        self._tensor = self._issued = 0.0
        self._waits: Counter[str] = Counter()

    def run(self) -> Modelled:
        while any(len(warp.turns) < _TURNS for warp in self._warps):
            self._step()
        per = [
            (warp.turns[-1] - warp.turns[_COUNTED_FROM - 1]) / (_TURNS - _COUNTED_FROM)
            for warp in self._warps
        ]
        share = 1 / _TURNS
        return Modelled(
            max(per),
            self._tensor * share,
            len(self._body) * len(self._warps),
            {cause: cycles * share for cause, cycles in self._waits.most_common()},
        )

    def _step(self) -> None:
        """Issue the instruction that can be issued first."""
        ready = [
            (*self._ready(warp), i)
            for i, warp in enumerate(self._warps)
            if warp.arrived is None and len(warp.turns) < _TURNS
        ]
        time, cause, which = min(ready, key=lambda one: (one[0], self._warps[one[2]].last))
        if time > self._now:
            self._waits[cause] += time - self._now
        self._now = time
        self._issue(self._warps[which], time)
        self._now += 1

    def _ready(self, warp: _Warp) -> tuple[float, str]:
        """When a warp's next instruction can be issued, and what delays it until then."""
        one = self._body[warp.at]
        time, cause = warp.free, "stall"
        for board in range(6):
            if one.waits >> board & 1 and board in warp.boards and warp.boards[board][0] > time:
                time, cause = warp.boards[board]
        if one.opcode.startswith("WARPGROUP.DEPBAR") and warp.tensor_done > time:
            time, cause = warp.tensor_done, "tensor"
        unit = _UNITS[one.kind][0]
        if one.kind != "tensor" and self._units[unit] > time:
            time, cause = self._units[unit], f"{unit} unit"
        return max(time, self._now), cause

    def _issue(self, warp: _Warp, time: float) -> None:
        one = self._body[warp.at]
        unit, busy, latency = _UNITS[one.kind]
        more = busy * (_width(one) - 1)
        busy += more
        warp.free, warp.last = time + max(1, one.stall), time
        if one.kind == "tensor":
            spent = tensor_cycles(one)
            begin = max(time, self._units[unit])
            self._units[unit] = begin + spent
            warp.tensor_done = begin + spent + _TENSOR_LATENCY
            self._tensor += spent
        else:
            self._units[unit] = time + busy
        for board in one.sets:
            if board is not None:
                done = warp.tensor_done if one.kind == "tensor" else time + latency + more
                before = warp.boards.get(board, (0.0, ""))[0]
                warp.boards[board] = (max(done, before), one.kind)
        if one.opcode.startswith(("MEMBAR", "FENCE")):
            warp.free = time + _FENCE_CYCLES
        warp.at += 1
        if one.opcode.startswith("BAR."):
            self._arrive(warp, time)
        if warp.at == len(self._body):
            warp.at = 0
            warp.turns.append(time)

    def _arrive(self, warp: _Warp, time: float) -> None:
        """Release a program's warps from a barrier once all of them have arrived."""
        warp.arrived = time
        together = [other for other in self._warps if other.program == warp.program]
        if all(other.arrived is not None for other in together):
            for other in together:
                other.arrived, other.free = None, time + _BAR_CYCLES


def _width(one: Instruction) -> float:
    """32-bit words that a memory access moves for each lane."""
    if ".128" in one.opcode or "88.4" in one.opcode:
        return 4.0
    return 2.0 if ".64" in one.opcode and one.kind in ("shared", "global", "spill") else 1.0
