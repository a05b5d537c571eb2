"""Shuffling without memory: a keyed permutation of 0…n−1, computed an index at a time.

A Feistel network over the smallest even number of bits that holds n, repeated until the index is
below n. Any position of any epoch is computed without the ones before it, so that every backend
trains on the same batches, whatever its order of work. The same function is in `grid_cpu.c`.
"""

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 8
_M64 = 2**64 - 1


def _mix32(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def _mix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _M64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _M64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _M64
    return x ^ (x >> 31)


def shuffled(n: int, key: int, epoch: int) -> NDArray[np.int64]:
    """Return the epoch's order of 0…n−1, as int64 (n,)."""
    epoch_key = _mix64(key ^ _mix64(epoch))
    low, high = np.uint32(epoch_key & 0xFFFFFFFF), epoch_key >> 32
    half = max(1, -(-(n - 1).bit_length() // 2))
    mask = np.uint32((1 << half) - 1)
    index = np.arange(n, dtype=np.uint32)
    walking = np.ones(n, dtype=bool)
    while walking.any():
        left, right = index[walking] >> np.uint32(half), index[walking] & mask
        for i in range(_ROUNDS):
            round_key = _mix32(np.array([(high + i) & 0xFFFFFFFF], dtype=np.uint32))
            left, right = right, left ^ (_mix32(right + low + round_key) & mask)
        index[walking] = left << np.uint32(half) | right
        walking = index >= n
    return index.astype(np.int64)
