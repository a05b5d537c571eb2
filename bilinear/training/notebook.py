"""The backend that trains by the notebook's loop, one model after another."""

from collections.abc import Iterator, Sequence
from math import nan

from bilinear.experiment.config import SweepConfig
from bilinear.experiment.cost import notebook_bytes
from bilinear.experiment.record import Finished, Job, Progress, Record, Weights
from bilinear.experiment.task import split_pairs
from bilinear.kernels.grid_torch import TorchGridModel
from bilinear.reference import ModelConfig
from bilinear.training.backend import Work
from bilinear.training.notebook_loop import train_notebook


class ReferenceBackend:
    """Trains `bilinear.reference.Model` under autograd: what other backends are compared with."""

    name = "reference"
    at_once = 1

    def __init__(self, device: str) -> None:
        """Train on `device`, "cpu" or "cuda"."""
        self.device = device
        self.reason = f"no --fused: the notebook's loop, on {device}"

    def model_bytes(self, config: SweepConfig, d_hidden: int) -> int:
        """See `training.backend.TrainsInMemory`."""
        return notebook_bytes(config, d_hidden)

    def train(self, work: Sequence[Work]) -> Iterator[tuple[int, Progress | Finished]]:
        """See `training.backend.Backend`; widths from the largest down, as in the notebook."""
        for index, w in enumerate(work):
            for job in sorted(w.jobs, reverse=True):
                yield index, self._train_one(w.config, job)

    def _train_one(self, config: SweepConfig, job: Job) -> Finished:
        result = train_notebook(
            ModelConfig(config.p, job.d_hidden),
            seed=job.seed,
            train_frac=config.train_frac,
            batch_size=config.batch_size,
            epochs=-(-config.steps // config.steps_per_epoch),
            lr=config.lr.start,
            weight_decay=config.weight_decay.start,
            device=self.device,
        )
        model = result.model.cpu()
        weights = Weights(*(w.detach().clone() for w in (model.w_l, model.w_r, model.w_p)))
        split = split_pairs(config.p, config.train_frac, job.seed)
        last = TorchGridModel(*weights, split.pairs, split.n_train).evaluate()
        record = Record(config)
        # The loop evaluates the validation accuracy alone; the rest is NaN before the last epoch.
        for epoch, (loss, acc) in enumerate(zip(result.train_loss, result.val_acc, strict=True), 1):
            step = epoch * config.steps_per_epoch
            if epoch < result.epochs:
                record.add(step, loss, nan, nan, acc * split.n_val, nan)
            else:
                record.add(step, *last)
        return Finished(job, record, weights)
