"""The sweep on a GPU: all models train at once, some steps per launch."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bilinear.experiment.config import SweepConfig
from bilinear.experiment.initial_weights import initial_weights
from bilinear.experiment.record import Finished, Job, Progress, Weights
from bilinear.experiment.schedule import Phase
from bilinear.experiment.streams import stream_key
from bilinear.experiment.task import split_pairs
from bilinear.kernels.grid_triton import (
    Recipe,
    TritonGrid,
    bytes_a_model,
    chunks_of,
    padded,
    step_seconds,
)
from bilinear.kernels.tiles import Tile
from bilinear.reading.interactions import interaction_matrices
from bilinear.results.checkpoint import Checkpoint
from bilinear.training.backend import Work
from bilinear.training.chains import Chains, Run

# Seconds that a launch should take: results and progress are read between launches.
_LAUNCH_SECONDS = 0.25
# Seconds that one replay of captured steps should take, many times the 10 µs that the host needs to
# start it; and the most steps that are captured.
_REPLAY_SECONDS = 1e-3
_STEPS_A_REPLAY = 10
_SHARE_OF_MEMORY = 0.6
# Seconds between checkpoints: a killed process loses at most that much training.
_CHECKPOINT_SECONDS = 5.0
_NEVER = 2**30


class GpuBackend:
    """Trains on a CUDA device by `bilinear.kernels.grid_triton`."""

    name = "triton-cuda"

    def __init__(self, device: torch.device, reason: str, memory: int | None = None) -> None:
        """Train on `device`, in waves of models that fit `memory` bytes; None: 60 % of the free."""
        self.device, self.reason, self._memory = device, reason, memory

    @property
    def at_once(self) -> int:
        """Models that train at full speed at a time: one on each multiprocessor."""
        if self.device.type != "cuda":
            return 1
        return torch.cuda.get_device_properties(self.device).multi_processor_count

    def train(self, work: Sequence[Work]) -> Iterator[tuple[int, Progress | Finished]]:
        """See `bilinear.training.backend.Backend`; events come a few times a second.

        The bits of a model do not depend on the launch or the program it is trained in, nor on what
        is trained beside it. The state of models in training is written to `scratch` every few
        seconds, except for narrowed ones: those begin again from the next wider one. Configs train
        one after another, because each p and batch size has a compiled kernel of its own.
        """
        for index, w in enumerate(work):
            for event in self._train(w):
                yield index, event

    def _train(self, work: Work) -> Iterator[Progress | Finished]:
        """Keep one launch of each lane running while the results of the one before are read.

        Independent models train in waves that fit the memory. Runs of narrowed models start as soon
        as the wider model has ended, beside the runs that train already.
        """
        narrowed = work.config.narrow is not None
        kept = None if work.scratch is None or narrowed else Checkpoint(work.scratch)
        states = {} if kept is None else kept.read()
        chains = Chains([work], self._losses_without)
        room = self._memory or _SHARE_OF_MEMORY * torch.cuda.mem_get_info(self.device)[0]
        waiting: list[Run] = []
        lanes: list[_Lane] = []
        last_kept = time.monotonic()
        while True:
            if narrowed or not any(lane.live for lane in lanes):
                lanes = [lane for lane in lanes if lane.live]
                left = room - sum(lane.size for lane in lanes)
                take = partial(chains.take, wait=False)
                fitting = _fitting(take, waiting, left, self.device, at_least=not lanes)
                for runs in _together(fitting, self.device):
                    lanes.append(_Lane(runs, self.device, states, self.at_once))
                    lanes[-1].launch()
            live = [lane for lane in lanes if lane.live]
            if not live:
                return
            for lane in live:
                lane.look()
                lane.launch()
            for lane in live:
                for event in lane.events(chains.wanted):
                    if isinstance(event, Progress):
                        yield event
                        continue
                    run, interactions = event
                    for model in chains.bring_back(run):
                        yield replace(model, interactions=interactions)
            done = not any(lane.live for lane in lanes)
            if kept is not None and (done or time.monotonic() - last_kept > _CHECKPOINT_SECONDS):
                for lane in lanes:
                    lane.keep(kept)
                last_kept = time.monotonic()

    # Not by the CPU's kernel, as in `CpuBackend`: the order of units, and so the models, would
    # depend on whether that kernel is built and on the processor's instruction set.
    def _losses_without(self, config: SweepConfig, seed: int, weights: Weights) -> list[float]:
        split = split_pairs(config.p, config.train_frac, seed)
        pairs = split.pairs[: split.n_train].long().to(self.device)
        w_l, w_r, w_p = (w.to(self.device) for w in weights)
        a, b = pairs[:, 0], pairs[:, 1] + config.p
        h = (w_l[:, a] + w_l[:, b]) * (w_r[:, a] + w_r[:, b])
        logits, label = h.T @ w_p.T, pairs.sum(1) % config.p
        each = [
            F.cross_entropy(logits - torch.outer(h[unit], w_p[:, unit]), label)
            for unit in range(len(h))
        ]
        return torch.stack(each).tolist()


def recipe_of(config: SweepConfig, phase: Phase | None = None, *, to_end: bool = False) -> Recipe:
    """The kernels' settings for a config, and for a phase other than the config's own recipe.

    With `to_end` no model stops early.
    """
    phase = phase or config.recipe
    return Recipe(
        p=config.p,
        n_train=config.n_train,
        lr=phase.lr.values(phase.steps),
        weight_decay=phase.weight_decay.values(phase.steps),
        betas=config.betas,
        eps=config.eps,
        eval_every=config.eval_every,
        hold=_NEVER if to_end else config.hold,
        goal_is_val=config.goal == "val",
        batch=config.batch_size,
        precision=config.precision,
    )


def make_grid(
    config: SweepConfig,
    jobs: Sequence[Job],
    device: torch.device,
    chunks: int = 1,
    tile: Tile | None = None,
    *,
    weights: Sequence[Weights] | None = None,
    phase: Phase | None = None,
    to_end: bool = False,
) -> TritonGrid:
    """Return a grid of jobs of one padded width, at step 0; `weights` None draws initial ones."""
    if weights is None:
        weights = [Weights(*initial_weights(config.p, *job, config.init_scale)) for job in jobs]
    seeds = sorted({job.seed for job in jobs})
    splits = [split_pairs(config.p, config.train_frac, seed).pairs for seed in seeds]
    return TritonGrid(
        recipe_of(config, phase, to_end=to_end),
        weights,
        splits,
        [seeds.index(job.seed) for job in jobs],
        [stream_key("shuffle", config.p, *job) for job in jobs],
        device,
        chunks,
        tile,
    )


def _fitting(
    take: Callable[[], Run | None],
    waiting: list[Run],
    room: float,
    device: torch.device,
    *,
    at_least: bool,
) -> list[Run]:
    """Take the next runs that fit into `room` bytes together; with `at_least`, one in any case.

    The run that did not fit is put into `waiting`, and is the first at the next call.
    """
    fitting: list[Run] = []
    while (run := waiting.pop() if waiting else take()) is not None:
        room -= _size(run, device)
        if room < 0 and not (at_least and not fitting):
            waiting.append(run)
            break
        fitting.append(run)
    return fitting


def _size(run: Run, device: torch.device) -> int:
    return bytes_a_model(recipe_of(run.config, run.phase), run.job.d_hidden, device)


def _together(runs: Sequence[Run], device: torch.device) -> list[list[Run]]:
    """Group runs by what a lane has one of: padded width, phase and `to_end`."""
    groups: defaultdict[tuple[int, Phase, bool], list[Run]] = defaultdict(list)
    for run in runs:
        width = padded(recipe_of(run.config, run.phase), run.job.d_hidden, device)
        groups[width, run.phase, run.to_end].append(run)
    return list(groups.values())


class _Lane:
    """Runs of one padded width and phase, on a stream of their own."""

    def __init__(
        self,
        runs: list[Run],
        device: torch.device,
        states: Mapping[Job, Mapping[str, Tensor]],
        at_once: int,
    ) -> None:
        self._runs = runs
        config, phase, to_end = runs[0].config, runs[0].phase, runs[0].to_end
        self._recipe = recipe_of(config, phase, to_end=to_end)
        self.size = sum(_size(run, device) for run in runs)
        self._on_gpu = device.type == "cuda"
        self._grid = make_grid(
            config,
            [run.job for run in runs],
            device,
            chunks_of(self._recipe),
            weights=[run.weights for run in runs],
            phase=phase,
            to_end=to_end,
        )
        for i, run in enumerate(runs):
            if run.job in states:
                self._grid.restore(i, states[run.job])
        self._stream = torch.cuda.Stream(device) if self._on_gpu else None
        self._copies = torch.cuda.Stream(device) if self._on_gpu else None
        self._seen: torch.cuda.Event | None = None
        self._last = self._shown = _Stopwatch(self._stream)
        self._live = list(range(len(runs)))
        self._before = [len(run.record.evaluations) for run in runs]
        self._counters = self._pinned(self._grid.counters)
        self._history = self._pinned(self._grid.history)
        a_step = step_seconds(self._recipe, self._grid.d, len(runs), device, at_once)
        self._quantum = max(1, min(self._recipe.steps, round(_LAUNCH_SECONDS / a_step)))
        self._dropped: list[int] = []
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(device))
            self._grid.keep_for(self._stream)
        with self._on(self._stream):
            self._steps = _Steps(self._grid, a_step)

    @property
    def live(self) -> bool:
        """Whether a model is still in training."""
        return bool(self._live)

    def launch(self) -> None:
        """Enqueue the next steps of all models that are neither done nor dropped."""
        with self._on(self._stream):
            if self._dropped:
                self._grid.stop(self._dropped)
                self._dropped = []
            self._last = _Stopwatch(self._stream)
            self._steps.take(self._quantum)
            self._last.stop()

    def look(self) -> None:
        """Enqueue copies of the counters and evaluations that the launches so far have written."""
        with self._on(self._stream):
            self._counters.copy_(self._grid.counters, non_blocking=True)
            self._history.copy_(self._grid.history, non_blocking=True)
            self._shown = self._last
            if self._stream is not None:
                self._seen = self._stream.record_event()

    def events(
        self, wanted: Callable[[Run], bool]
    ) -> Iterator[Progress | tuple[Run, Tensor | None]]:
        """Wait for the copies of `look`; yield progress, and runs that have ended.

        These come with their interaction matrices (n_remainders, 2p, 2p), if made here.
        """
        if self._seen is not None:
            self._seen.synchronize()
        self._adapt()
        counters = self._counters.tolist()
        ended = [i for i in self._live if counters[i][2]]
        others = [i for i in self._live if not counters[i][2]]
        self._live = [i for i in others if wanted(self._runs[i])]
        self._dropped += [i for i in others if i not in self._live]
        for i in [*ended, *self._live]:
            self._read(i, counters[i])
        for i in self._live:
            evaluations = self._runs[i].record.evaluations
            if len(evaluations) > self._before[i]:
                yield Progress(self._runs[i].job, evaluations[-1])
        if ended:
            yield from self._with_weights(ended)

    def keep(self, checkpoint: Checkpoint) -> None:
        """Write the state of all models after the steps enqueued; remove it if none is live."""
        group = f"d{self._grid.d:03d}"
        if not self.live:
            checkpoint.forget(group)
            return
        with self._on(self._stream):
            state = self._grid.state()
        checkpoint.write(group, [run.job for run in self._runs], state)

    def _adapt(self) -> None:
        """Set the next launch's steps to take `_LAUNCH_SECONDS`; no model's bits depend on them."""
        ratio = _LAUNCH_SECONDS / max(self._shown.seconds(), 1e-4)
        self._quantum = max(1, min(self._recipe.steps, round(self._quantum * min(ratio, 4.0))))

    def _read(self, i: int, counters: list[int]) -> None:
        """Append the evaluations that are new.

        The weights after a model's last step are evaluated by its next launch, unless it is done.
        """
        taken, _, done = counters
        every, record, before = self._recipe.eval_every, self._runs[i].record, self._before[i]
        known = -(-taken // every) if done else max(0, taken - 1) // every
        seen = len(record.evaluations) - before
        begin = record.evaluations[before - 1].step if before else 0
        for n, row in enumerate(self._history[i, seen:known].tolist(), seen + 1):
            record.add(begin + min(n * every, self._recipe.steps), *row)

    def _with_weights(self, models: list[int]) -> Iterator[tuple[Run, Tensor | None]]:
        """Copy weights and interaction matrices on a second stream, while the others train on.

        Of several runs of a narrowed model one will be kept, so no matrices are made here.
        """
        config = self._runs[0].config
        kept = [] if config.narrow else list(config.remainders)
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
            run, d = self._runs[i], self._runs[i].job.d_hidden
            own = (w_l[n, :d], w_r[n, :d], w_p[n, :, :d])
            run.weights = Weights(*(w.contiguous() for w in own))
            yield run, interactions[0][n].clone() if interactions else None

    def _pinned(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=self._on_gpu)

    def _on(self, stream: torch.cuda.Stream | None) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)


class _Steps:
    """Steps of all models of a grid; a launch does nothing for models that are done.

    With full batches a step is two launches. On a GPU some steps are captured as a CUDA graph,
    because the host cannot start launches as fast as the GPU ends them. The first step is taken
    outside the graph: it compiles the kernels, which a capture cannot.
    """

    def __init__(self, grid: TritonGrid, a_step: float) -> None:
        self._grid = grid
        self._models = torch.arange(len(grid.widths), dtype=torch.int32, device=grid.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._captured = max(1, min(_STEPS_A_REPLAY, round(_REPLAY_SECONDS / a_step)))
        if grid.device.type == "cuda" and not grid.recipe.batch:
            grid.step(self._models)
            self._graph = torch.cuda.CUDAGraph()
            # Not torch.cuda.graph, which would wait for the lanes that train already.
            self._graph.capture_begin(capture_error_mode="thread_local")
            for _ in range(self._captured):
                grid.step(self._models)
            self._graph.capture_end()

    def take(self, steps: int) -> None:
        """Enqueue about `steps` steps, but at least the steps of one replay."""
        if self._grid.recipe.batch:
            self._grid.run(self._models, steps)
        elif self._graph is None:
            for _ in range(steps):
                self._grid.step(self._models)
        else:
            for _ in range(max(1, steps // self._captured)):
                self._graph.replay()


class _Stopwatch:
    """Seconds from now to `stop`, on the stream's own clock if there is one."""

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
