"""The shape of the work of one Triton program."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Tile:
    """Block sizes of one program, and how it is run. A size a kernel has no use for is 0.

    block_m: rows of x; block_d: hidden units; block_n: columns of what is written;
    block_k: depth of one step of the reduction over d_in or d_out.
    """

    block_m: int
    num_warps: int
    num_stages: int
    block_d: int = 0
    block_n: int = 0
    block_k: int = 0

    def fit(self, *, m: int, d: int = 0, n: int = 0, k: int = 0) -> "Tile":
        """Shrink every block to the power of two, at least 16, that just covers its extent."""
        return replace(
            self,
            block_m=min(self.block_m, cover(m)),
            block_d=min(self.block_d, cover(d)),
            block_n=min(self.block_n, cover(n)),
            block_k=min(self.block_k, cover(k)),
        )


def cover(extent: int) -> int:
    """Smallest power of two >= extent, and >= 16, the least that `tl.dot` takes."""
    return max(16, 1 << max(0, extent - 1).bit_length())


def blocks(extent: int, block: int) -> int:
    """How many blocks cover `extent`."""
    return -(-extent // block)
