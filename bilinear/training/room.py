"""Whether a sweep fits this machine's memory and disk, checked before anything is written."""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice, repeat
from pathlib import Path

from bilinear.errors import ConfigError
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.cost import sweep_cost
from bilinear.results.folder import Folder
from bilinear.training.backend import Backend, TrainsInMemory

_CGROUPS = Path("/sys/fs/cgroup")


def check_room(cells: Sequence[SweepConfig], backend: Backend, out: Folder) -> None:
    """Raise ConfigError if models in training don't fit the memory, or all results the disk."""
    if isinstance(backend, TrainsInMemory) and (free := free_memory()) is not None:
        for cell in cells:
            _check_memory(cell, backend, free)
    if out.path is not None:
        _check_disk(cells, out.path)


def _check_memory(cell: SweepConfig, backend: TrainsInMemory, free: int) -> None:
    widths = sorted(cell.widths, reverse=True)
    models = chain.from_iterable(repeat(d, len(cell.seeds)) for d in widths)
    together = list(islice(models, backend.at_once))
    needed = sum(backend.model_bytes(cell, d) for d in together)
    if needed <= free:
        return
    of_p = 2 * backend.model_bytes(cell, 1) > backend.model_bytes(cell, widths[0])
    raise ConfigError(
        f"{'p' if of_p else 'widths'}: expected models that train in {free / 1e9:,.1f} GB of free "
        f"memory, got {len(together)} at once of p = {cell.p:,}, width {widths[0]:,} and "
        f"{cell.steps:,} steps, which take {needed / 1e9:,.1f} GB"
    )


def _check_disk(cells: Sequence[SweepConfig], path: Path) -> None:
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    needed = sum(sweep_cost(cell).disk_bytes for cell in cells)
    if needed > free and needed > free + _bytes_there(path):
        raise ConfigError(
            f"out: expected {needed / 1e6:,.3f} MB of space for {str(path)!r}, "
            f"got {free / 1e6:,.3f}"
        )


def _bytes_there(path: Path) -> int:
    """Bytes that an earlier run wrote: this one replaces them, so they need no further space."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def free_memory() -> int | None:
    """Bytes that this process may still take: of the machine, its limit and its control groups.

    None if the system does not say.
    """
    return max(0, min(_limits())) if sys.platform == "linux" else _installed()


def _limits() -> Iterator[int]:
    text = Path("/proc/meminfo").read_text()
    yield 1024 * int(text.partition("MemAvailable:")[2].split()[0])
    yield from _of_control_groups()
    import resource

    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        yield most - pages * os.sysconf("SC_PAGE_SIZE")


def _of_control_groups() -> Iterator[int]:
    with suppress(OSError, ValueError):
        name = Path("/proc/self/cgroup").read_text().rpartition("0::/")[2].strip()
        for group in (_CGROUPS / name, *(_CGROUPS / name).parents):
            limit = group / "memory.max"
            if limit.exists() and (most := limit.read_text().strip()) != "max":
                yield int(most) - int((group / "memory.current").read_text()) + _cached(group)


def _cached(group: Path) -> int:
    """Bytes of cached files, which the kernel frees when memory is short."""
    stat = (group / "memory.stat").read_text()
    return int(stat.partition("\ninactive_file ")[2].split()[0])


def _installed() -> int | None:
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
