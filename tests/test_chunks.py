"""Cutting a study into what a cluster's devices take."""

import pytest

from bilinear.chunks import cut
from bilinear.config import SweepConfig
from bilinear.cost import model_flop
from bilinear.training import Job, Work


def work(p: int, widths: tuple[int, ...], seeds: int) -> Work:
    config = SweepConfig(p=p, widths=widths, seeds=tuple(range(seeds)), steps=50, remainders=())
    return Work(config, list(map(Job._make, config.jobs)))


STUDY = [work(5, (4, 3), 7), work(11, (9, 6, 2), 20), work(7, (1,), 1)]


@pytest.mark.parametrize("devices", [0, 1, 3, 1000])
@pytest.mark.parametrize("at_once", [1, 5, 1000])
def test_every_job_is_in_one_chunk(devices: int, at_once: int) -> None:
    chunks = cut(STUDY, devices, at_once)
    for index, (config, jobs, _) in enumerate(STUDY):
        mine = [chunk for chunk in chunks if chunk.index == index]
        assert sorted(job for chunk in mine for job in chunk.jobs) == sorted(jobs)
        assert all(chunk.config is config for chunk in mine)
        assert all(len(chunk.jobs) >= at_once for chunk in mine[:-1])


def test_the_long_ones_go_first() -> None:
    chunks = cut(STUDY, 4, 1)
    assert [c.index for c in chunks] == sorted((c.index for c in chunks), key=[1, 2, 0].index)
    first = [job.d_hidden for chunk in chunks if chunk.index == 1 for job in chunk.jobs]
    assert first == sorted(first)


def test_a_device_gets_sixteen_chunks() -> None:
    for devices in (1, 2, 5):
        one = work(11, (9, 6, 2), 100)
        chunks = cut([one], devices, 1)
        flop = [sum(model_flop(c.config, job.d_hidden) for job in c.jobs) for c in chunks]
        share = sum(flop) / (16 * devices)
        widest = model_flop(one.config, 9)
        assert max(flop) <= max(share, widest)
        assert min(flop[:-1]) > share - widest
        assert len(chunks) >= 16 * devices
