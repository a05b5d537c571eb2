"""A study on a Ray cluster: every chunk is a task of its own, on one core or one GPU.

Ray places the tasks, notices deaths and carries the models back; what is here cuts the study,
hands out chunks and starts again what a dead worker left unfinished. A model's bits depend on its
config and its seed alone, so nothing else is needed for the folder to end with those of a run
without Ray.
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

_PROGRESS_SECONDS = 1.0  # of a chunk: a thousand of them must not swamp the driver
_ANSWER_SECONDS = 5.0
_FREE_SECONDS = 60.0  # a busy cluster may have no device to measure on
_PROBE_SECONDS = 300.0  # a node may read PyTorch from a slow disk first
_DEATHS_IN_A_ROW = 5
_EMPTY_SECONDS = 60.0


class _Site(NamedTuple):
    """What a node says of itself: `fill` models are what its device trains at the same time."""

    environment: dict[str, str]
    reason: str
    fill: int


@dataclass
class _Flight:
    """A chunk handed to Ray: which of its models have not come back, how often a worker died.

    `ended` are narrowed models that have, from which others of the chunk start.
    """

    chunk: Chunk
    left: set[Job] = field(init=False)
    ended: dict[Job, Parent] = field(default_factory=dict)
    deaths: int = 0

    def __post_init__(self) -> None:
        self.left = set(self.chunk.jobs)

    @property
    def rest(self) -> Chunk:
        return replace(
            self.chunk,
            jobs=tuple(sorted(self.left)),
            parents={**self.chunk.parents, **self.ended},
        )


class RayBackend:
    """Trains on all nodes of a Ray cluster with the backend each of them has.

    Models in training leave nothing in `Work.scratch`: those a dead worker had begun start again
    from their seeds, elsewhere.
    """

    def __init__(
        self, cells: Sequence[SweepConfig], *, device: str = "auto", address: str | None = None
    ) -> None:
        """Connect, and ask every node whether it can train `cells` and has this version.

        `address` is host:port of a running cluster, of which this machine must be a node; without
        one, Ray's own default: RAY_ADDRESS, a cluster this machine is part of, or one of this
        machine alone for as long as the process lives. With device "auto" the GPUs train if the
        cluster has any.

        Raises ConfigError if the address doesn't answer, a node runs another version or can't train
        the cells, and EngineError if a node does not answer.
        """
        _connect(address)
        self._device = _device_of(device)
        sites = _ask_every_node(tuple(cells), self._device)
        self._site = next(iter(sites.values()))
        self.name = self._site.environment["backend"]
        self._check_alike(sites)
        size = f"{_RESOURCE[self._device]}s: {self._devices()} on {len(sites)} nodes"
        where = ray.get_runtime_context().gcs_address
        self.reason = f"Ray at {where}, {size}; {self._site.reason}"

    @property
    def at_once(self) -> int:
        """Those of one device of the cluster."""
        return self._site.fill

    def calibrate(self, cells: Sequence[SweepConfig]) -> Calibration | None:
        """Have one device measured, on whichever node has one free, with the cache there.

        None if it takes too long, or no device becomes free for a minute. Raises EngineError if
        the worker dies.
        """
        asked = _calibrate.options(**_needs(self._device)).remote(tuple(cells), self._device)
        ready, _ = ray.wait([asked], timeout=_FREE_SECONDS)
        if not ready:
            ray.cancel(asked)
            return None
        try:
            found: Calibration | None = ray.get(asked)
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            raise EngineError(f"ray: calibration: {str(error).splitlines()[0]}") from None
        return found and replace(found, devices=max(1, self._devices()))

    def _check_alike(self, sites: dict[str, _Site]) -> None:
        wanted = environment(self)
        for node, site in sites.items():
            _check_same(site.environment, wanted, node)

    def _devices(self) -> int:
        """Cores or GPUs that are alive now."""
        return sum(int(node["Resources"].get(_RESOURCE[self._device], 0)) for node in _nodes())

    def train(self, work: Sequence[Work]) -> Iterator[tuple[int, Progress | Finished]]:
        """See `bilinear.training.backend.Backend`; progress comes once a second from each chunk.

        Twice as many chunks as there are devices are with Ray at a time, so that no device waits
        for the next one. Raises EngineError if workers keep dying of one chunk, or no node is left
        for a minute.
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
        """What a stream brings next; None if it has ended or its worker died."""
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
            ray.cancel(stream)  # one model may be lost while the rest of its chunk still trains
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
    """What a task asks of Ray; retries are ours, for Ray would train the whole chunk again."""
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
        # Ray raises the bare class where its processes miss their time limit, which is fixed and
        # which a first start from a slow disk can miss.
        if type(error) is not Exception:
            raise
        raise EngineError(f"ray: no node started here; try again: {error}") from None


def _check_answers(address: str) -> None:
    """Ask the port itself first: Ray would try for a minute before it gives up."""
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
    """Ask each node that has devices; a thousandth of one, so as not to wait for busy ones."""
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
        site: _Site = ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, ConfigError):
            raise error.cause from None
        last = str(error.cause).strip().splitlines()[-1]
        raise ConfigError(f"ray: node {node} can't train: {last}") from None
    except RayError as error:
        raise EngineError(f"ray: node {node}: {str(error).splitlines()[0]}") from None
    return site


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
    """Train a chunk here; a node that joined late is checked here, too."""
    backend = choose(chunk.config, fused=True, device=device, workers=1)
    _check_same(environment(backend), wanted, platform.node())
    said = 0.0
    for event in train(backend, chunk.config, chunk.jobs, parents=chunk.parents):
        if isinstance(event, Finished) or time.monotonic() - said > _PROGRESS_SECONDS:
            said = time.monotonic()
            yield event
