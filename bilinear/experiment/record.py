"""A model in training and at its end: evaluations, success, weights, where they come from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from bilinear.experiment.config import SweepConfig


class Job(NamedTuple):
    """One model of a sweep."""

    d_hidden: int
    seed: int


class Evaluation(NamedTuple):
    """A model after `step` steps: mean losses in nats, accuracies, smallest margin over all pairs.

    The margin of a pair is its label's logit less the largest other one; the pair is right if that
    is above 0, so a tie is wrong.
    """

    step: int
    train_loss: float
    val_loss: float
    train_acc: float
    val_acc: float
    full_acc: float
    min_margin: float


@dataclass
class Record:
    """The evaluations of one model, and whether it succeeded."""

    config: SweepConfig
    evaluations: list[Evaluation] = field(default_factory=list)

    def add(
        self,
        step: int,
        train_loss: float,
        val_loss: float,
        train_correct: float,
        val_correct: float,
        min_margin: float,
    ) -> Evaluation:
        """Append one evaluation from its counts of right answers; NaN is what was not evaluated."""
        n_train, n_all = self.config.n_train, self.config.p**2
        self.evaluations.append(
            Evaluation(
                step=step,
                train_loss=train_loss,
                val_loss=val_loss,
                train_acc=train_correct / n_train,
                val_acc=val_correct / (n_all - n_train),
                full_acc=(train_correct + val_correct) / n_all,
                min_margin=min_margin,
            )
        )
        return self.evaluations[-1]

    def _reached(self, evaluation: Evaluation) -> bool:
        acc = evaluation.full_acc if self.config.goal == "full" else evaluation.val_acc
        return acc == 1.0

    @property
    def at_goal(self) -> bool:
        """Whether the goal was reached at the last `hold` evaluations."""
        return self.at_goal_since(0)

    def at_goal_since(self, seen: int) -> bool:
        """Whether it was, counting only evaluations after the first `seen`."""
        last = self.evaluations[seen:][-self.config.hold :]
        return len(last) == self.config.hold and all(map(self._reached, last))

    def row(self, job: Job) -> dict[str, int | float | bool | None]:
        """Summarise the run as a row of the results' table.

        `perfect` is whether every pair was right at the last `hold` evaluations, `held` whether
        accuracy, once at 100 %, never fell again; both of all p² pairs, whatever the goal.
        """
        last = self.evaluations[-1]
        right = [e.full_acc == 1.0 for e in self.evaluations]
        first = right.index(True) if any(right) else None
        tail = right[-self.config.hold :]
        return {
            "d_hidden": job.d_hidden,
            "seed": job.seed,
            "train_loss": last.train_loss,
            "val_loss": last.val_loss,
            "train_acc": last.train_acc,
            "val_acc": last.val_acc,
            "full_acc": last.full_acc,
            "min_margin": last.min_margin,
            "perfect": len(tail) == self.config.hold and all(tail),
            "first_perfect_step": None if first is None else self.evaluations[first].step,
            "held": first is not None and all(right[first:]),
            "best_full_acc": max(e.full_acc for e in self.evaluations),
            "steps": last.step,
        }


@dataclass(frozen=True)
class Progress:
    """A model still in training."""

    job: Job
    evaluation: Evaluation


class Weights(NamedTuple):
    """w_l, w_r (d, 2p) and w_p (p, d) of a model, float32."""

    w_l: Tensor
    w_r: Tensor
    w_p: Tensor

    def of_rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """w_l, w_r and w_pᵀ, each with one row per hidden unit."""
        return self.w_l, self.w_r, self.w_p.T

    def of_units(self, units: Sequence[int]) -> "Weights":
        """The model of these hidden units alone, in this order."""
        kept = list(units)
        return Weights(self.w_l[kept], self.w_r[kept], self.w_p[:, kept].contiguous())


class Parent(NamedTuple):
    """A model that the next narrower one starts from; `units` as in `Lineage`."""

    weights: Weights
    units: tuple[int, ...]


class Lineage(NamedTuple):
    """Where the weights of a narrowed model come from.

    `units` (d,) names each hidden unit by its row in the chain's widest model; a unit drawn anew at
    width d, in place of `redrawn`, is named by the widest width plus d. The model started from
    that of width `parent` without the units `dropped`; `tries` starts were trained.
    """

    units: tuple[int, ...]
    parent: int | None = None
    dropped: tuple[int, ...] = ()
    redrawn: int | None = None
    tries: int = 1

    def row(self) -> dict[str, int | None]:
        """Return its columns of the table; `dropped_unit` is None unless one unit was dropped."""
        one = self.dropped[0] if len(self.dropped) == 1 else None
        return {
            "parent": self.parent,
            "dropped_unit": one,
            "redrawn_unit": self.redrawn,
            "tries": self.tries,
        }


@dataclass(frozen=True)
class Finished:
    """A model at the end of its run, its weights on the CPU.

    `interactions` (n_remainders, 2p, 2p) are those of the config's remainders, if the backend has
    computed them; `lineage` is None if the model was not narrowed.
    """

    job: Job
    record: Record
    weights: Weights
    interactions: Tensor | None = None
    lineage: Lineage | None = None

    @property
    def row(self) -> dict[str, int | float | bool | None]:
        """The model's row of the results' table."""
        return self.record.row(self.job) | (self.lineage.row() if self.lineage else {})

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """The weights under the names that `bilinear.reference.Model` loads."""
        return {
            "bi_linear.weight": torch.cat([self.weights.w_l, self.weights.w_r]),
            "projection.weight": self.weights.w_p,
        }
