"""Independent random streams, named by what they are for instead of by the order of their use."""

import hashlib

import torch


def stream_key(purpose: str, *numbers: int) -> int:
    """64-bit key of the stream for `purpose` and `numbers` (a modulus, a width, a seed, …).

    Two streams that differ in anything are unrelated, so a model draws the same numbers whatever
    is trained beside it.
    """
    text = ",".join([purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def generator(purpose: str, *numbers: int) -> torch.Generator:
    """Return a CPU generator at the start of that stream."""
    return torch.Generator().manual_seed(stream_key(purpose, *numbers) >> 1)
