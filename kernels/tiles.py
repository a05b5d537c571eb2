"""The shape of the work of one Triton program."""

from dataclasses import dataclass, replace
from functools import lru_cache


@dataclass(frozen=True)
class Tile:
    """Block sizes of one program, and how it is run. A size that a kernel does not use is 0.

    block_m: rows of x; block_d: hidden units; block_n: columns of what is written;
    block_k: depth of one step of the reduction over d_in or d_out.
    """

    block_m: int
    num_warps: int
    num_stages: int
    block_d: int = 0
    block_n: int = 0
    block_k: int = 0

    def fit(self, **extents: int) -> "Tile":
        """Shrink the blocks named (m, d, n, k) to the power of two, at least 16, that just covers.

        Kernels of the layer keep block_m whatever their rows: otherwise a user of varying M would
        wait for a compilation at each power of two. Rows past M are only masked.
        """
        return _fitted(self, tuple(extents.items()))


@lru_cache(4096)
def _fitted(tile: Tile, extents: tuple[tuple[str, int], ...]) -> Tile:
    blocks = {f"block_{name}": extent for name, extent in extents}
    fitted = {name: min(getattr(tile, name), cover(most)) for name, most in blocks.items()}
    return replace(tile, **fitted)


def cover(extent: int) -> int:
    """Smallest power of two >= extent, and >= 16, the least that `tl.dot` takes."""
    return max(16, 1 << max(0, extent - 1).bit_length())


def blocks(extent: int, block: int) -> int:
    """How many blocks cover `extent`."""
    return -(-extent // block)
