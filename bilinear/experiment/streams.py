"""Independent random streams, each named by its purpose, so that the order of use is free."""

import hashlib

import torch


def stream_key(purpose: str, *numbers: int) -> int:
    """64-bit key of the stream for `purpose` and `numbers` (a modulus, a width, a seed, …).

    Streams with different keys are unrelated, so a model draws the same numbers whatever is
    trained beside it.
    """
    text = ",".join([purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def generator(purpose: str, *numbers: int) -> torch.Generator:
    """Return a CPU generator at the start of that stream."""
    return torch.Generator().manual_seed(stream_key(purpose, *numbers) >> 1)
