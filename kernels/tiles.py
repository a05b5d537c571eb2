"""The shape of the work of one Triton program."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """Rows of x, columns and reduction depth of one program's tile, and how it is run.

    The launchers shrink blocks to powers of two that just cover the problem.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
