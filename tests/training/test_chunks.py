"""Cutting a study into chunks for a cluster's devices."""

import pytest
import torch

from bilinear.experiment.config import SweepConfig
from bilinear.experiment.narrowing import Narrowing
from bilinear.experiment.record import Job, Parent, Weights
from bilinear.training.backend import Work
from bilinear.training.chunks import cut, expected_work


def work(p: int, widths: tuple[int, ...], seeds: int) -> Work:
    config = SweepConfig(p=p, widths=widths, seeds=tuple(range(seeds)), steps=50, remainders=())
    return Work(config, list(map(Job._make, config.jobs)))


STUDY = [work(5, (4, 3), 7), work(11, (9, 6, 2), 20), work(7, (1,), 1)]


@pytest.mark.parametrize("devices", [0, 1, 3, 1000])
@pytest.mark.parametrize("at_once", [1, 5, 1000])
def test_every_job_is_in_one_chunk(devices: int, at_once: int) -> None:
    chunks = cut(STUDY, devices, at_once)
    for index, (config, jobs, *_) in enumerate(STUDY):
        mine = [chunk for chunk in chunks if chunk.index == index]
        assert sorted(job for chunk in mine for job in chunk.jobs) == sorted(jobs)
        assert all(chunk.config is config for chunk in mine)
        assert all(len(chunk.jobs) >= at_once for chunk in mine[:-1])


def test_narrow_models_of_all_configs_go_first() -> None:
    chunks = cut(STUDY, 4, 1)
    narrow = [chunk.jobs[0].d_hidden / chunk.config.p for chunk in chunks]
    assert narrow == sorted(narrow)
    assert {chunk.index for chunk in chunks} == {0, 1, 2}
    for index in (0, 1):
        widths = [job.d_hidden for chunk in chunks if chunk.index == index for job in chunk.jobs]
        assert widths == sorted(widths)


def test_a_device_gets_enough_chunks() -> None:
    for devices in (1, 2, 5):
        one = work(11, (9, 6, 2), 100)
        chunks = cut([one], devices, 1)
        of = [sum(expected_work(c.config, job.d_hidden) for job in c.jobs) for c in chunks]
        share = sum(of) / (32 * devices)
        widest = expected_work(one.config, one.jobs[0].d_hidden)
        assert max(of) <= max(share, widest)
        assert min(of[:-1]) > share - widest
        assert len(chunks) >= 32 * devices


def test_models_that_stop_early_are_no_reason_for_small_chunks() -> None:
    config = SweepConfig(seeds=tuple(range(20)))
    chunks = cut([Work(config, list(map(Job._make, config.jobs)))], 2, 1)
    narrow = [len(c.jobs) for c in chunks if c.jobs[-1].d_hidden == 1]
    wide = [len(c.jobs) for c in chunks if c.jobs[0].d_hidden > 40]
    # A step at width 40 costs twice one at width 1, but there are thirty times fewer of them.
    assert min(wide[:-1]) > 2 * max(narrow)


def test_a_narrowed_seed_stays_in_one_chunk_with_what_it_starts_from() -> None:
    config = SweepConfig(
        p=8, widths=(5, 4, 3, 2), seeds=(0, 1, 2), remainders=(), narrow=Narrowing()
    )
    jobs = [job for job in map(Job._make, config.jobs) if job != Job(5, 1)]
    weights = Weights(torch.ones(5, 16), torch.ones(5, 16), torch.ones(8, 5))
    parent = Parent(weights, (0, 1, 2, 3, 4))
    chunks = cut([Work(config, jobs, None, {Job(5, 1): parent})], devices=1000, at_once=1)
    assert sorted(sorted({job.seed for job in chunk.jobs}) for chunk in chunks) == [[0], [1], [2]]
    for chunk in chunks:
        seed = chunk.jobs[0].seed
        widths = sorted(job.d_hidden for job in chunk.jobs)
        assert widths == ([2, 3, 4] if seed == 1 else [2, 3, 4, 5])
        assert chunk.parents == ({Job(5, 1): parent} if seed == 1 else {})
