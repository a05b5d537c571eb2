"""Parses the disassembler's Hopper machine code: instructions, their waits, and loops.

The upper 64 bits of each instruction control the scheduler, as published reverse engineering of
Volta and later describes. They hold the cycles to stall, and which of six scoreboards the
instruction sets or waits for. Scoreboards track instructions of variable latency.
"""

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s+/\* 0x[0-9a-f]{16} \*/")
_UPPER = re.compile(r"^\s+/\* (0x[0-9a-f]{16}) \*/")
_TARGET = re.compile(r"BRA.*?(0x[0-9a-f]+)")
_NONE = 7  # value of a three-bit scoreboard field that names none

# An opcode's class is the first one with a prefix of the opcode.
_CLASSES = {
    "tensor": ("HGMMA", "HMMA", "DMMA", "QGMMA", "IMMA"),
    "MUFU": ("MUFU",),
    "convert": ("F2F.", "I2F", "F2I", "FRND", "POPC"),
    "shuffle": ("SHFL", "REDUX", "VOTE"),
    "shared": ("LDS", "STS", "LDSM", "STSM", "ATOMS", "MOVM"),
    "spill": ("LDL", "STL"),
    "global": ("LDG", "STG", "LD.", "ST.", "RED", "ATOM", "UBLKCP", "LDGSTS"),
    "barrier": ("BAR", "MEMBAR", "FENCE", "WARPGROUP", "DEPBAR", "LDGDEPBAR", "SYNCS", "WARPSYNC"),
    "branch": ("BRA", "BSSY", "BSYNC", "EXIT", "NOP", "RET", "CALL", "BREAK"),
    "uniform": ("U", "R2UR", "S2UR"),
    "FMA": ("FADD", "FMUL", "FFMA", "IMAD", "HFMA2", "HADD2", "HMUL2", "DADD", "DMUL", "DFMA"),
}


@dataclass(frozen=True)
class Instruction:
    """One instruction; `sets`: scoreboards it sets for its results and its operands, or None."""

    address: int
    opcode: str
    text: str
    stall: int
    sets: tuple[int | None, int | None]
    waits: int
    target: int | None

    @property
    def kind(self) -> str:
        """Its class in `_CLASSES`, or "ALU"."""
        for kind, names in _CLASSES.items():
            if self.opcode.startswith(names):
                return kind
        return "ALU"


@dataclass(frozen=True)
class Loop:
    """Instructions of a loop's body in order, branches within it not taken."""

    body: tuple[Instruction, ...]

    @property
    def counts(self) -> Counter[str]:
        """Instructions by class."""
        return Counter(one.kind for one in self.body)

    @property
    def start(self) -> int:
        """Address of the first instruction."""
        return self.body[0].address


def parse(text: str) -> list[Instruction]:
    """Instructions of the first function in the output of `cuobjdump -sass`."""
    found: list[Instruction] = []
    lines = text.splitlines()
    for line, after in pairwise(lines):
        match, upper = _LINE.match(line), _UPPER.match(after)
        if match is None or upper is None:
            continue
        address, written = int(match[1], 16), match[2]
        if found and address <= found[-1].address:
            break
        plain = re.sub(r"^@!?U?P\w+\s+", "", written)
        control = int(upper[1], 16) >> 41
        target = _TARGET.search(plain)
        on_write, on_read = control >> 5 & 7, control >> 8 & 7
        found.append(
            Instruction(
                address, plain.split()[0], plain, control & 15,
                (_board(on_write), _board(on_read)), control >> 11 & 63,
                int(target[1], 16) if target else None,
            )
        )  # fmt: skip
    return found


def _board(bits: int) -> int | None:
    return None if bits == _NONE else bits


def innermost_loops(code: list[Instruction]) -> list[Loop]:
    """Loops that contain no other loop, in order of address."""
    spans = [
        (one.target, one.address)
        for one in code
        if one.target is not None and one.target < one.address
    ]
    inner = [
        (first, last)
        for first, last in spans
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in spans)
    ]
    return [
        Loop(tuple(one for one in code if first <= one.address <= last))
        for first, last in sorted(set(inner))
    ]


def hot_loop(code: list[Instruction]) -> Loop | None:
    """The innermost loop with most tensor instructions, then the longest; None without loops."""
    loops = innermost_loops(code)
    return max(loops, key=lambda loop: (loop.counts["tensor"], len(loop.body)), default=None)
