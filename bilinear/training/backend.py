"""The interface that every training backend implements, and what folders store of it."""

import contextlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable

import torch

import bilinear
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.record import Finished, Job, Parent, Progress


class Work(NamedTuple):
    """Models of one config to be trained; a backend may store their state in the folder `scratch`.

    `parents` are models trained earlier, from which jobs of a narrowed config start.
    """

    config: SweepConfig
    jobs: Sequence[Job]
    scratch: Path | None = None
    parents: Mapping[Job, Parent] = MappingProxyType({})

    def dependent(self) -> list[list[Job]]:
        """Lists of jobs that wait for one another: a narrowed seed's, widest first, or one each."""
        if self.config.narrow is None:
            return [[job] for job in sorted(self.jobs)]
        seeds: dict[int, list[Job]] = {}
        for job in sorted(self.jobs, key=lambda job: (job.seed, -job.d_hidden)):
            seeds.setdefault(job.seed, []).append(job)
        return list(seeds.values())


class Backend(Protocol):
    """Something that trains models on some device.

    A model's bits depend on its config and its job alone, never on what is trained beside it.
    """

    name: str
    reason: str

    @property
    def at_once(self) -> int:
        """How many models its device trains at full speed at the same time."""
        ...

    def train(self, work: Sequence[Work]) -> Iterator[tuple[int, Progress | Finished]]:
        """Train all jobs, in any order; yield progress and models with their index into `work`.

        Closing the iterator stops the training. After that, or after a kill, the same call with the
        same config may go on from what the backend stored in `scratch`; the backend empties that
        folder when all jobs of its work have finished.
        """
        ...


@runtime_checkable
class TrainsInMemory(Backend, Protocol):
    """A backend whose models are in this machine's memory while they are trained."""

    def model_bytes(self, config: SweepConfig, d_hidden: int) -> int:
        """Bytes that one model takes at most."""
        ...


def environment(backend: Backend) -> dict[str, str]:
    """Return what a model's bits depend on besides the config."""
    return {
        "backend": backend.name,
        "bilinear": bilinear.__version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


def processor(backend: Backend) -> str:
    """Name the GPU that `backend` trains on, or this machine's processor."""
    device = torch.device(getattr(backend, "device", "cpu"))
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu()


@cache
def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def train(
    backend: Backend,
    config: SweepConfig,
    jobs: Sequence[Job] | None = None,
    scratch: Path | None = None,
    parents: Mapping[Job, Parent] = MappingProxyType({}),
) -> Iterator[Progress | Finished]:
    """Train jobs of one config, all of them if none are named; see `Backend.train`."""
    jobs = list(map(Job._make, config.jobs)) if jobs is None else jobs
    with contextlib.closing(backend.train([Work(config, jobs, scratch, parents)])) as events:  # type: ignore[type-var]
        for _, event in events:
            yield event
