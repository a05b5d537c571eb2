"""A study on a Ray cluster: every chunk is a task of its own, on one core or one GPU.

Ray places the tasks, notices dead workers and returns the models. This file cuts the study into
chunks, submits them, and submits again the models that a dead worker did not return. A model's bits
depend on its config and its seed alone, so the folder ends with those of a run without Ray.
"""

import logging
import platform
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from bilinear.errors import ConfigError, EngineError
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.record import Finished, Job, Parent, Progress
from bilinear.training.backend import Work, environment, train
from bilinear.training.choose import choose, choose_for
from bilinear.training.chunks import Chunk, cut
from bilinear.training.forecast import calibration
from bilinear.training.forecast.calibration import Calibration

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise ConfigError(
        f"engine: expected ray to be installed (pip install 'bilinear[ray]'), got {error}"
    ) from None

_log = logging.getLogger(__name__)

_PROGRESS_SECONDS = 1.0  # between events of a chunk: more of a thousand chunks overload the driver
_ANSWER_SECONDS = 5.0
_FREE_SECONDS = 60.0  # to wait for a free device to measure on
_PROBE_SECONDS = 300.0  # a node may have to read PyTorch from a slow disk first
_DEATHS_IN_A_ROW = 5
_EMPTY_SECONDS = 60.0


class _Site(NamedTuple):
    """What a node reports; its device trains `fill` models at full speed at the same time."""

    environment: dict[str, str]
    reason: str
    fill: int


@dataclass
class _Flight:
    """A chunk submitted to Ray: models not returned yet, deaths of workers since the last one was.

    `ended` are narrowed models that were returned: others of the chunk start from them.
    """

    chunk: Chunk
    left: set[Job] = field(init=False)
    ended: dict[Job, Parent] = field(default_factory=dict)
    deaths: int = 0

    def __post_init__(self) -> None:
        self.left = set(self.chunk.jobs)

    @property
    def rest(self) -> Chunk:
        parents = {**self.chunk.parents, **self.ended}
        return replace(self.chunk, jobs=tuple(sorted(self.left)), parents=parents)


class RayBackend:
    """Trains on all nodes of a Ray cluster with the backend each of them has.

    Models in training write nothing to `Work.scratch`: those that a dead worker had begun start
    again from their seeds on another one.
    """

    def __init__(
        self, cells: Sequence[SweepConfig], *, device: str = "auto", address: str | None = None
    ) -> None:
        """Connect, and check that every node has this version and can train `cells`.

        `address` is host:port of a running cluster, of which this machine must be a node. None is
        Ray's own default: RAY_ADDRESS, a cluster this machine is part of, or a new one of this
        machine alone that ends with the process. With device "auto" the GPUs train if the cluster
        has any.

        Raises ConfigError if the address doesn't answer, a node runs another version or can't train
        the cells, and EngineError if a node does not answer.
        """
        _connect(address)
        self._device = _device_of(device)
        sites = _ask_every_node(tuple(cells), self._device)
        self._site = next(iter(sites.values()))
        self.name = self._site.environment["backend"]
        for node, site in sites.items():
            _check_same(site.environment, environment(self), node)
        size = f"{_RESOURCE[self._device]}s: {self._devices()} on {len(sites)} nodes"
        where = ray.get_runtime_context().gcs_address
        self.reason = f"Ray at {where}, {size}; {self._site.reason}"

    @property
    def at_once(self) -> int:
        """Models that one device of the cluster trains at full speed at the same time."""
        return self._site.fill

    def calibrate(self, cells: Sequence[SweepConfig]) -> Calibration | None:
        """Measure one device on any node that has one free, with that node's cache.

        Returns None if steps take too long, or if no device becomes free for a minute. Raises
        EngineError if the worker dies.
        """
        asked = _calibrate.options(**_needs(self._device)).remote(tuple(cells), self._device)
        ready, _ = ray.wait([asked], timeout=_FREE_SECONDS)
        if not ready:
            ray.cancel(asked)
            return None
        try:
            found = ray.get(asked)
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            raise EngineError(f"ray: calibration: {str(error).splitlines()[0]}") from None
        return found and replace(found, devices=max(1, self._devices()))

    def _devices(self) -> int:
        """Cores or GPUs of the nodes that are alive now."""
        return sum(int(node["Resources"].get(_RESOURCE[self._device], 0)) for node in _nodes())

    def train(self, work: Sequence[Work]) -> Iterator[tuple[int, Progress | Finished]]:
        """See `bilinear.training.backend.Backend`; each chunk yields its progress once a second.

        Twice as many chunks as there are devices are submitted at a time, so that no device waits
        for the next one. Raises EngineError if workers die of one chunk repeatedly, or if there is
        no node for a minute.
        """
        waiting = deque(map(_Flight, cut(work, self._devices(), self._site.fill)))
        flying: dict[Any, _Flight] = {}
        seen = time.monotonic()
        try:
            while waiting or flying:
                while waiting and len(flying) < 2 * max(1, self._devices()):
                    flight = waiting.popleft()
                    flying[self._launch(flight.rest)] = flight
                ready, _ = ray.wait(list(flying), timeout=1.0)
                if ready or self._devices():
                    seen = time.monotonic()
                elif time.monotonic() - seen > _EMPTY_SECONDS:
                    raise EngineError(
                        f"ray: expected a node to train on, got none for {_EMPTY_SECONDS:.0f} s; "
                        "models that ended are kept"
                    )
                for stream in ready:
                    event = self._next(stream, flying, waiting)
                    if event is not None:
                        yield event
        finally:
            for stream in flying:
                ray.cancel(stream)

    def _launch(self, chunk: Chunk) -> Any:
        return _train_chunk.options(**_needs(self._device)).remote(
            chunk, self._device, environment(self)
        )

    def _next(
        self, stream: Any, flying: dict[Any, _Flight], waiting: deque[_Flight]
    ) -> tuple[int, Progress | Finished] | None:
        """The next event of a chunk's stream; None if the stream has ended or its worker died."""
        flight = flying[stream]
        try:
            event: Progress | Finished = ray.get(next(stream))
        except StopIteration:
            del flying[stream]
            if flight.left:
                raise EngineError(f"ray: {flight.rest.jobs} did not come back") from None
            return None
        except RayTaskError as error:
            del flying[stream]
            raise error.cause from None
        except RayError as error:
            del flying[stream]
            ray.cancel(stream)  # if one model alone was lost, the task trains on
            if flight.left:
                self._note_death(flight, error)
                waiting.appendleft(flight)
            return None
        if isinstance(event, Finished):
            flight.left.discard(event.job)
            if event.lineage is not None:
                flight.ended[event.job] = Parent(event.weights, event.lineage.units)
            flight.deaths = 0
        return flight.chunk.index, event

    def _note_death(self, flight: _Flight, error: RayError) -> None:
        flight.deaths += 1
        why = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        if flight.deaths == _DEATHS_IN_A_ROW:
            raise EngineError(
                f"ray: workers died {flight.deaths} times in a row of {_name(flight.rest)} ({why})"
            )
        _log.warning("a worker died (%s); to start again: %s", why, _name(flight.rest))


_RESOURCE = {"cpu": "CPU", "cuda": "GPU"}


def _needs(device: str, share: float = 1.0) -> dict[str, Any]:
    """Resources of a task. No retries by Ray, which would train the whole chunk again."""
    of = {"num_cpus": 0, "num_gpus": share} if device == "cuda" else {"num_cpus": share}
    return {"max_retries": 0, **of}


def _name(chunk: Chunk) -> str:
    widths = sorted({job.d_hidden for job in chunk.jobs})
    models = "1 model" if len(chunk.jobs) == 1 else f"{len(chunk.jobs)} models"
    span = f"width {widths[0]}" if len(widths) == 1 else f"widths {widths[0]} to {widths[-1]}"
    return f"{models} of p {chunk.config.p}, {span}"


def _connect(address: str | None) -> None:
    if ray.is_initialized():
        return
    if address is not None:
        _check_answers(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"ray address: expected a Ray cluster, got {address!r}: {first}"
        ) from None
    except Exception as error:
        # Ray raises a bare Exception if its processes do not start within its fixed time limit; a
        # first start from a slow disk can take longer.
        if type(error) is not Exception:
            raise
        raise EngineError(f"ray: no node started here; try again: {error}") from None


def _check_answers(address: str) -> None:
    """Try the port itself first: Ray would try for a minute before it raises."""
    if address in ("auto", "local"):
        return
    host, colon, port = address.rpartition(":")
    if "/" in address or not colon or not port.isdigit():
        raise ConfigError(f"ray address: expected host:port, auto or local, got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"ray address: expected a Ray cluster, got no answer at {address!r} ({error})"
        ) from None


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _device_of(device: str) -> str:
    gpus = any(node["Resources"].get("GPU", 0) >= 1 for node in _nodes())
    if device == "cuda" and not gpus:
        raise ConfigError("device: expected one the cluster has, got 'cuda' (no node has a GPU)")
    return "cuda" if gpus and device != "cpu" else "cpu"


def _ask_every_node(cells: tuple[SweepConfig, ...], device: str) -> dict[str, _Site]:
    """Run `_describe` on each node with devices, on 1/1000 of one: busy nodes have that free."""
    asked = {}
    for node in _nodes():
        if node["Resources"].get(_RESOURCE[device], 0) < 1:
            continue
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        probe = _describe.options(scheduling_strategy=there, **_needs(device, 0.001))
        asked[probe.remote(cells, device)] = f"{node['NodeManagerHostname']} {node['NodeID'][:8]}"
    if not asked:
        raise ConfigError(f"ray: expected a node with a {_RESOURCE[device]}, got none")
    _, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_PROBE_SECONDS)
    if silent:
        raise EngineError(f"ray: no answer from node {asked[silent[0]]} in {_PROBE_SECONDS:.0f} s")
    return {node: _answer(ref, node) for ref, node in asked.items()}


def _answer(ref: Any, node: str) -> _Site:
    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, ConfigError):
            raise error.cause from None
        last = str(error.cause).strip().splitlines()[-1]
        raise ConfigError(f"ray: node {node} can't train: {last}") from None
    except RayError as error:
        raise EngineError(f"ray: node {node}: {str(error).splitlines()[0]}") from None


def _check_same(here: dict[str, str], wanted: dict[str, str], node: str) -> None:
    for name, value in wanted.items():
        if here[name] != value:
            raise ConfigError(
                f"ray: expected {name} {value} on every node, got {here[name]} on {node}; "
                "the bits of models could differ"
            )


@ray.remote
def _describe(cells: tuple[SweepConfig, ...], device: str) -> _Site:
    backend = choose_for(cells, fused=True, device=device, workers=1)
    fill = torch.cuda.get_device_properties(0).multi_processor_count if device == "cuda" else 1
    return _Site(environment(backend), backend.reason, fill)


@ray.remote
def _calibrate(cells: tuple[SweepConfig, ...], device: str) -> Calibration | None:
    backend = choose_for(cells, fused=True, device=device, workers=1)
    return calibration.calibrate(backend, cells)


@ray.remote(num_returns="streaming")
def _train_chunk(
    chunk: Chunk, device: str, wanted: dict[str, str]
) -> Iterator[Progress | Finished]:
    """Train a chunk; a node that joined after the first check is checked here."""
    backend = choose(chunk.config, fused=True, device=device, workers=1)
    _check_same(environment(backend), wanted, platform.node())
    said = 0.0
    for event in train(backend, chunk.config, chunk.jobs, parents=chunk.parents):
        if isinstance(event, Finished) or time.monotonic() - said > _PROGRESS_SECONDS:
            said = time.monotonic()
            yield event
