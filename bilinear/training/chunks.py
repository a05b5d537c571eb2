"""How a study is cut into chunks that a cluster's devices train one after another."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bilinear.experiment.config import SweepConfig
from bilinear.experiment.cost import work_of_step
from bilinear.experiment.record import Job, Parent
from bilinear.training.backend import Work
from bilinear.training.forecast.expected_steps import expected_steps

# Chunks a device: with fewer and longer ones, devices wait longer for the last chunk of another.
_CHUNKS_A_DEVICE = 32


@dataclass(frozen=True)
class Chunk:
    """Models of one config that one device trains; `index` is that of their `Work`.

    `parents` are those of `Work` from which these jobs start.
    """

    index: int
    config: SweepConfig
    jobs: tuple[Job, ...]
    parents: Mapping[Job, Parent]


def cut(work: Sequence[Work], devices: int, at_once: int) -> list[Chunk]:
    """Cut all jobs into chunks, those that take longest first.

    A chunk is a small part of a device's share of the work, but at least the `at_once` models that
    a device trains at the same time, if its config has that many left. Narrow models of all configs
    go first: they seldom reach their goal before the last step, so they take longest, and the many
    short chunks after them even out errors of the estimate. Narrowed models of one seed wait for
    one another, so they share a chunk.
    """
    each = [{d: expected_work(w.config, d) for d in {job.d_hidden for job in w.jobs}} for w in work]
    total = sum(of[job.d_hidden] for w, of in zip(work, each, strict=True) for job in w.jobs)
    share = total / (max(devices, 1) * _CHUNKS_A_DEVICE)
    chunks = [
        Chunk(index, w.config, jobs, _parents_of(w, jobs))
        for index, (w, of) in enumerate(zip(work, each, strict=True))
        for jobs in _grouped(w.dependent(), of, share, at_once)
    ]
    return sorted(chunks, key=lambda chunk: chunk.jobs[0].d_hidden / chunk.config.p)


def expected_work(config: SweepConfig, d_hidden: int) -> float:
    """FLOP until a model is expected to stop; of all its steps if no such config was measured."""
    return expected_steps(config, d_hidden) * work_of_step(config, d_hidden)


def _parents_of(work: Work, jobs: Sequence[Job]) -> dict[Job, Parent]:
    seeds = {job.seed for job in jobs}
    return {job: parent for job, parent in work.parents.items() if job.seed in seeds}


def _grouped(
    dependent: Sequence[Sequence[Job]], work_of: dict[int, float], share: float, at_once: int
) -> Iterator[tuple[Job, ...]]:
    """Jobs of each chunk: `dependent` lists up to `share` FLOP, but at least `at_once` lists."""
    chunk: list[Job] = []
    flop, lists = 0.0, 0
    for jobs in dependent:
        more = sum(work_of[job.d_hidden] for job in jobs)
        if lists >= at_once and flop + more > share:
            yield tuple(chunk)
            chunk, flop, lists = [], 0.0, 0
        chunk.extend(jobs)
        flop += more
        lists += 1
    if chunk:
        yield tuple(chunk)
