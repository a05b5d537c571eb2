"""How a study is cut into pieces that a cluster's devices take one after another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bilinear.config import SweepConfig
from bilinear.cost import model_flop
from bilinear.training import Job, Work

# So many pieces a device: the fewer, the longer the others wait for the last one.
_PIECES_A_DEVICE = 16


@dataclass(frozen=True)
class Chunk:
    """Models of one config, trained by one device in one go; `index` is that of their `Work`."""

    index: int
    config: SweepConfig
    jobs: tuple[Job, ...]


def cut(work: Sequence[Work], devices: int, at_once: int) -> list[Chunk]:
    """Cut all jobs into chunks, those that take longest first.

    A chunk holds a sixteenth of a device's share of the work, but at least `at_once` models where
    its config has that many left: what a device trains at the same time. The moduli go from large
    to small, and of a config the narrow models go first: they seldom reach their goal before the
    last step, so they take longest.
    """
    total = sum(_flop(w.config, w.jobs) for w in work)
    share = total / (max(devices, 1) * _PIECES_A_DEVICE)
    largest_first = sorted(range(len(work)), key=lambda index: -work[index].config.p)
    return [
        Chunk(index, work[index].config, jobs)
        for index in largest_first
        for jobs in _pieces(work[index], share, at_once)
    ]


def _flop(config: SweepConfig, jobs: Sequence[Job]) -> int:
    return sum(model_flop(config, job.d_hidden) for job in jobs)


def _pieces(work: Work, share: float, at_once: int) -> Iterator[tuple[Job, ...]]:
    piece: list[Job] = []
    flop = 0
    for job in sorted(work.jobs):
        more = model_flop(work.config, job.d_hidden)
        if len(piece) >= at_once and flop + more > share:
            yield tuple(piece)
            piece, flop = [], 0
        piece.append(job)
        flop += more
    if piece:
        yield tuple(piece)
