"""The sweep on a CPU: independent models on a pool of threads, one model a thread at a time."""

import queue
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock

from bilinear.experiment.config import SweepConfig
from bilinear.experiment.initial_weights import initial_weights
from bilinear.experiment.record import Finished, Job, Progress, Record
from bilinear.experiment.streams import stream_key
from bilinear.experiment.task import split_pairs
from bilinear.kernels.grid_cpu import CpuGridModel
from bilinear.kernels.grid_torch import TorchGridModel
from bilinear.training.backend import Work

_REPORT_SECONDS = 0.2

GridModel = CpuGridModel | TorchGridModel
_Events = queue.SimpleQueue[tuple[int, Progress | Finished] | BaseException]


class CpuBackend:
    """Trains with one of the CPU's grid models, in true float32."""

    def __init__(self, model_type: type[GridModel], workers: int, name: str, reason: str) -> None:
        """Train models of `model_type` on `workers` threads; `reason` is why."""
        self.model_type, self.workers = model_type, workers
        self.name, self.reason = name, reason

    @property
    def at_once(self) -> int:
        """A model a thread."""
        return self.workers

    def train(self, work: Sequence[Work]) -> Iterator[tuple[int, Progress | Finished]]:
        """See `training.backend.Backend`; progress comes a few times a second for each model.

        Narrow models of a config go first: they seldom reach their goal before the last step, so
        they take longest, and a long one started last would leave the other threads idle.
        """
        events: _Events = queue.SimpleQueue()
        stop = Event()
        queued = iter([(i, w.config, job) for i, w in enumerate(work) for job in sorted(w.jobs)])
        taking = Lock()

        def train_queued() -> None:
            try:
                while not stop.is_set():
                    with taking:
                        task = next(queued, None)
                    if task is None:
                        return
                    index, config, job = task
                    model = make_model(self.model_type, config, job)
                    for event in _train_one(config, job, model, stop):
                        events.put((index, event))
            except BaseException as error:  # reaches the caller's thread
                events.put(error)

        left = sum(len(w.jobs) for w in work)
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="bilinear")
        try:
            for _ in range(min(self.workers, left)):
                pool.submit(train_queued)
            while left:
                found = events.get()
                if isinstance(found, BaseException):
                    raise found
                left -= isinstance(found[1], Finished)
                yield found
        finally:
            stop.set()
            pool.shutdown(wait=True)


def make_model(model_type: type[GridModel], config: SweepConfig, job: Job) -> GridModel:
    """Return the job's model at step 0."""
    split = split_pairs(config.p, config.train_frac, job.seed)
    return model_type(
        *initial_weights(config.p, job.d_hidden, job.seed, config.init_scale),
        split.pairs,
        split.n_train,
        betas=config.betas,
        eps=config.eps,
        batch=config.batch_size,
        shuffle_key=stream_key("shuffle", config.p, job.d_hidden, job.seed),
    )


def _train_one(
    config: SweepConfig, job: Job, model: GridModel, stop: Event
) -> Iterator[Progress | Finished]:
    lr, weight_decay = config.lr.values(config.steps), config.weight_decay.values(config.steps)
    record = Record(config)
    step, reported = 0, time.monotonic()
    while not record.finished:
        if stop.is_set():
            return
        to = min(step + config.eval_every, config.steps)
        model.steps(lr[step:to], weight_decay[step:to])
        step = to
        evaluation = record.add(step, *model.evaluate())
        if time.monotonic() - reported > _REPORT_SECONDS:
            reported = time.monotonic()
            yield Progress(job, evaluation)
    yield Finished(job, record, *model.weights())
