"""The sweep on a GPU: all models at once, a program each, in launches of some steps."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bilinear.experiment.config import SweepConfig
from bilinear.experiment.initial_weights import initial_weights
from bilinear.experiment.record import Finished, Job, Progress, Record, Weights
from bilinear.experiment.streams import stream_key
from bilinear.experiment.task import split_pairs
from bilinear.kernels.grid_triton import TILE, Recipe, TritonGrid, bytes_a_model, padded
from bilinear.kernels.tiles import Tile
from bilinear.reading.interactions import interaction_matrices
from bilinear.results.checkpoint import Checkpoint
from bilinear.training.backend import Work

# How long a launch should take: results and progress appear between launches.
_LAUNCH_SECONDS = 0.25
_FIRST_QUANTUM = 20
_SHARE_OF_MEMORY = 0.6
# At most this much training is lost to a kill.
_CHECKPOINT_SECONDS = 5.0


class GpuBackend:
    """Trains on a CUDA device by `bilinear.kernels.grid_triton`."""

    name = "triton-cuda"

    def __init__(self, device: torch.device, reason: str, memory: int | None = None) -> None:
        """Train on `device`, in waves of models that fit `memory` bytes (what is free there)."""
        self.device, self.reason, self._memory = device, reason, memory

    @property
    def at_once(self) -> int:
        """A program a model: as many as there are multiprocessors."""
        if self.device.type != "cuda":
            return 1
        return torch.cuda.get_device_properties(self.device).multi_processor_count

    def train(self, work: Sequence[Work]) -> Iterator[tuple[int, Progress | Finished]]:
        """See `bilinear.training.backend.Backend`; events come a few times a second.

        The bits of a model do not depend on the wave, the launch or the program it is trained in.
        Models in training are kept in `scratch` every few seconds. Configs train one after another:
        models of another p or batch size run another compiled kernel.
        """
        for index, w in enumerate(work):
            for event in self._train(w.config, w.jobs, w.scratch):
                yield index, event

    def _train(
        self, config: SweepConfig, jobs: Sequence[Job], scratch: Path | None
    ) -> Iterator[Progress | Finished]:
        recipe = recipe_of(config)
        checkpoint = None if scratch is None else Checkpoint(scratch)
        states = {} if checkpoint is None else checkpoint.read()
        for wave in _waves(sorted(jobs), recipe, self._room()):
            lanes = [
                _Lane(config, recipe, some, self.device, states) for some in _by_padded_width(wave)
            ]
            yield from _train_wave(lanes, checkpoint)

    def _room(self) -> float:
        if self._memory is not None:
            return self._memory
        free, _ = torch.cuda.mem_get_info(self.device)
        return free * _SHARE_OF_MEMORY


def recipe_of(config: SweepConfig) -> Recipe:
    """What the kernels need to know of a config."""
    return Recipe(
        p=config.p,
        n_train=config.n_train,
        lr=config.lr.values(config.steps),
        weight_decay=config.weight_decay.values(config.steps),
        betas=config.betas,
        eps=config.eps,
        eval_every=config.eval_every,
        hold=config.hold,
        goal_is_val=config.goal == "val",
        batch=config.batch_size,
        precision=config.precision,
    )


def make_grid(
    config: SweepConfig,
    jobs: Sequence[Job],
    device: torch.device,
    chunks: int = 1,
    tile: Tile = TILE,
) -> TritonGrid:
    """Return jobs of one padded width at step 0."""
    seeds = sorted({job.seed for job in jobs})
    splits = [split_pairs(config.p, config.train_frac, seed).pairs for seed in seeds]
    return TritonGrid(
        recipe_of(config),
        [initial_weights(config.p, *job, config.init_scale) for job in jobs],
        splits,
        [seeds.index(job.seed) for job in jobs],
        [stream_key("shuffle", config.p, *job) for job in jobs],
        device,
        chunks,
        tile,
    )


def _waves(jobs: Sequence[Job], recipe: Recipe, room: float) -> Iterator[list[Job]]:
    """Runs of jobs that fit into `room` bytes together, each at least one job long."""
    wave: list[Job] = []
    used = 0
    for job in jobs:
        size = bytes_a_model(recipe, job.d_hidden)
        if wave and used + size > room:
            yield wave
            wave, used = [], 0
        wave.append(job)
        used += size
    if wave:
        yield wave


def _by_padded_width(jobs: Sequence[Job]) -> list[list[Job]]:
    groups: defaultdict[int, list[Job]] = defaultdict(list)
    for job in jobs:
        groups[padded(job.d_hidden)].append(job)
    return list(groups.values())


class _Lane:
    """The models of one padded width, on a stream of their own.

    Jobs are queued narrowest first: those seldom reach their goal early, so they take longest.
    """

    def __init__(
        self,
        config: SweepConfig,
        recipe: Recipe,
        jobs: list[Job],
        device: torch.device,
        states: Mapping[Job, Mapping[str, Tensor]],
    ) -> None:
        self._config, self._recipe, self._jobs, self._device = config, recipe, jobs, device
        self._on_gpu = device.type == "cuda"
        self._grid = make_grid(config, jobs, device)
        for i, job in enumerate(jobs):
            if job in states:
                self._grid.restore(i, states[job])
        self._stream = torch.cuda.Stream(device) if self._on_gpu else None
        self._copies = torch.cuda.Stream(device) if self._on_gpu else None
        self._seen: torch.cuda.Event | None = None
        self._last = self._shown = _Stopwatch(self._stream)
        self._live = list(range(len(jobs)))
        self._records = [Record(config) for _ in jobs]
        self._counters = self._pinned(self._grid.counters)
        self._history = self._pinned(self._grid.history)
        self._quantum = _FIRST_QUANTUM
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(device))

    @property
    def live(self) -> bool:
        """Whether a model is still in training."""
        return bool(self._live)

    def launch(self) -> None:
        """Enqueue the next steps of all models that were live when last looked at."""
        with self._on(self._stream):
            models = torch.tensor(self._live, dtype=torch.int32, device=self._device)
            self._last = _Stopwatch(self._stream)
            self._grid.run(models, self._quantum)
            self._last.stop()

    def look(self) -> None:
        """Enqueue copies of what the launches so far have found."""
        with self._on(self._stream):
            self._counters.copy_(self._grid.counters, non_blocking=True)
            self._history.copy_(self._grid.history, non_blocking=True)
            self._shown = self._last
            if self._stream is not None:
                self._seen = self._stream.record_event()

    def events(self) -> Iterator[Progress | Finished]:
        """Wait for what `look` enqueued and yield what it shows."""
        if self._seen is not None:
            self._seen.synchronize()
        self._adapt()
        counters = self._counters.tolist()
        ended = [i for i in self._live if counters[i][2]]
        for i in self._live:
            self._read(i, counters[i])
            if i not in ended and self._records[i].evaluations:
                yield Progress(self._jobs[i], self._records[i].evaluations[-1])
        self._live = [i for i in self._live if not counters[i][2]]
        if ended:
            yield from self._finished(ended)

    def keep(self, checkpoint: Checkpoint) -> None:
        """Write the state of all models after what is enqueued, or drop it if none is live."""
        group = f"d{self._grid.d:03d}"
        if not self.live:
            checkpoint.forget(group)
            return
        with self._on(self._stream):
            state = self._grid.state()
        checkpoint.write(group, self._jobs, state)

    def _adapt(self) -> None:
        """Aim the next launch at `_LAUNCH_SECONDS`; the number of steps changes no model's bits."""
        ratio = _LAUNCH_SECONDS / max(self._shown.seconds(), 1e-4)
        self._quantum = max(1, min(self._recipe.steps, round(self._quantum * min(ratio, 4.0))))

    def _read(self, i: int, counters: list[int]) -> None:
        """Append the evaluations that are new.

        A model in training stands before the evaluation of its last step's weights.
        """
        taken, _, done = counters
        every, record = self._recipe.eval_every, self._records[i]
        known = -(-taken // every) if done else max(0, taken - 1) // every
        seen = len(record.evaluations)
        for n, row in enumerate(self._history[i, seen:known].tolist(), seen + 1):
            record.add(min(n * every, self._recipe.steps), *row)

    def _finished(self, models: list[int]) -> Iterator[Finished]:
        """Weights and interaction matrices, made and copied beside the training that goes on."""
        kept = list(self._config.remainders)
        with self._on(self._copies):
            weights = self._grid.weights(models)
            found = [*weights, *([interaction_matrices(weights, kept)] if kept else [])]
            host = [self._pinned(tensor) for tensor in found]
            for target, tensor in zip(host, found, strict=True):
                target.copy_(tensor, non_blocking=True)
            if self._copies is not None:
                self._copies.synchronize()
        w_l, w_r, w_p, *interactions = host
        for n, i in enumerate(models):
            d = self._jobs[i].d_hidden
            yield Finished(
                self._jobs[i],
                self._records[i],
                Weights(*(w.contiguous() for w in (w_l[n, :d], w_r[n, :d], w_p[n, :, :d]))),
                interactions[0][n].clone() if interactions else None,
            )

    def _pinned(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=self._on_gpu)

    def _on(self, stream: torch.cuda.Stream | None) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)


class _Stopwatch:
    """Seconds of what is enqueued on a stream, or run here, from now to `stop`."""

    def __init__(self, stream: torch.cuda.Stream | None) -> None:
        self._stream, self._start = stream, time.monotonic()
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if stream else []
        if stream is not None:
            self._events[0].record(stream)
        self.stop()

    def stop(self) -> None:
        self._end = time.monotonic()
        if self._stream is not None:
            self._events[1].record(self._stream)

    def seconds(self) -> float:
        if self._events:
            return self._events[0].elapsed_time(self._events[1]) / 1e3
        return self._end - self._start


def _train_wave(lanes: list[_Lane], checkpoint: Checkpoint | None) -> Iterator[Progress | Finished]:
    """Keep one launch running while the results of the one before are read."""
    kept = time.monotonic()
    for lane in lanes:
        lane.launch()
    while any(lane.live for lane in lanes):
        live = [lane for lane in lanes if lane.live]
        for lane in live:
            lane.look()
            lane.launch()
        for lane in live:
            yield from lane.events()
        if checkpoint is not None and time.monotonic() - kept > _CHECKPOINT_SECONDS:
            for lane in live:
                lane.keep(checkpoint)
            kept = time.monotonic()
    if checkpoint is not None:
        for lane in lanes:
            lane.keep(checkpoint)
