"""The sweep on a CPU: a pool of threads, each of which trains one model at a time."""

import queue
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from bilinear.experiment.config import SweepConfig
from bilinear.experiment.cost import training_bytes
from bilinear.experiment.initial_weights import initial_weights
from bilinear.experiment.record import Evaluation, Finished, Job, Progress, Weights
from bilinear.experiment.streams import stream_key
from bilinear.experiment.task import split_pairs
from bilinear.kernels.grid_cpu import CpuGridModel
from bilinear.kernels.grid_torch import TorchGridModel
from bilinear.training.backend import Work
from bilinear.training.chains import Chains, Run

_REPORT_SECONDS = 0.2

GridModel = CpuGridModel | TorchGridModel
_Events = queue.SimpleQueue[tuple[int, Progress | Finished] | BaseException]


class CpuBackend:
    """Trains with one of the CPU's grid models, in true float32."""

    def __init__(self, model_type: type[GridModel], workers: int, name: str, reason: str) -> None:
        """Train models of `model_type` on `workers` threads; `reason` says why this backend."""
        self.model_type, self.at_once = model_type, workers
        self.name, self.reason = name, reason

    def model_bytes(self, config: SweepConfig, d_hidden: int) -> int:
        """See `training.backend.TrainsInMemory`."""
        return training_bytes(config, d_hidden)

    def train(self, work: Sequence[Work]) -> Iterator[tuple[int, Progress | Finished]]:
        """See `training.backend.Backend`; each model yields its progress a few times a second."""
        chains = Chains(work, self._losses_without)
        events: _Events = queue.SimpleQueue()

        def train_runs() -> None:
            try:
                while (run := chains.take()) is not None:
                    for evaluation in _evaluations(self.model_type, run, chains):
                        events.put((run.index, Progress(run.job, evaluation)))
                    for model in chains.bring_back(run):
                        events.put((run.index, model))
            except BaseException as error:  # raised again in the caller's thread
                events.put(error)

        left = sum(len(w.jobs) for w in work)
        pool = ThreadPoolExecutor(self.at_once, thread_name_prefix="bilinear")
        try:
            for _ in range(self.at_once if left else 0):
                pool.submit(train_runs)
            while left:
                found = events.get()
                if isinstance(found, BaseException):
                    raise found
                left -= isinstance(found[1], Finished)
                yield found
        finally:
            chains.stop()
            pool.shutdown(wait=True)

    # Not by PyTorch's operations, as on a GPU: their sums depend on the number of threads, and so
    # would the order of units whose losses are nearly equal. The compiled kernel's do not.
    def _losses_without(self, config: SweepConfig, seed: int, weights: Weights) -> list[float]:
        d = len(weights.w_l)
        rest = ([i for i in range(d) if i != unit] for unit in range(d))
        models = (
            make_model(self.model_type, config, Job(d - 1, seed), weights.of_units(units))
            for units in rest
        )
        return [model.evaluate().train_loss for model in models]


def make_model(
    model_type: type[GridModel], config: SweepConfig, job: Job, weights: Weights | None = None
) -> GridModel:
    """Return the job's model at step 0, with its initial weights unless others are given."""
    split = split_pairs(config.p, config.train_frac, job.seed)
    if weights is None:
        weights = Weights(*initial_weights(config.p, *job, config.init_scale))
    return model_type(
        *weights,
        split.pairs,
        split.n_train,
        betas=config.betas,
        eps=config.eps,
        batch=config.batch_size,
        shuffle_key=stream_key("shuffle", config.p, *job),
    )


def _evaluations(model_type: type[GridModel], run: Run, chains: Chains) -> Iterator[Evaluation]:
    """Train a run to its end, or until it is not wanted; yield some evaluations for display."""
    config, record, steps = run.config, run.record, run.phase.steps
    lr, weight_decay = run.phase.lr.values(steps), run.phase.weight_decay.values(steps)
    model = make_model(model_type, config, run.job, run.weights)
    seen = len(record.evaluations)
    before = record.evaluations[-1].step if seen else 0
    step, reported = 0, time.monotonic()
    while step < steps and chains.wanted(run):
        if not run.to_end and record.at_goal_since(seen):
            break
        to = min(step + config.eval_every, steps)
        model.steps(lr[step:to], weight_decay[step:to])
        step = to
        evaluation = record.add(before + step, *model.evaluate())
        if time.monotonic() - reported > _REPORT_SECONDS:
            reported = time.monotonic()
            yield evaluation
    run.weights = Weights(*model.weights())
