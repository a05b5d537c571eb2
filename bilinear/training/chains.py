"""Which training run may start next, and which runs follow when it has ended.

In a sweep of independent widths every model is one run. With `config.narrow` the models of a seed
are a chain: the runs of a width start from the weights of the next wider model, once that has
ended. Backends take runs from `Chains` and return them trained, in any order and on any number of
threads; which model is kept depends on its config and its seed alone.
"""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Condition

from bilinear.experiment.config import SweepConfig
from bilinear.experiment.initial_weights import initial_weights
from bilinear.experiment.record import Finished, Job, Lineage, Parent, Record, Weights
from bilinear.experiment.schedule import Phase
from bilinear.training.backend import Work
from bilinear.training.drops import LossesWithout
from bilinear.training.starts import narrowed, nothing_goes, redrawn


@dataclass(eq=False)
class Run:
    """One phase of a model's training; a backend replaces `weights` and adds to `record`.

    `lineage` says where the weights come from. The run ends once the goal is reached, with `to_end`
    at the last step only.
    """

    index: int
    config: SweepConfig
    job: Job
    phase: Phase
    weights: Weights
    lineage: Lineage
    record: Record
    to_end: bool = False
    taken: bool = field(default=False, init=False)

    def again(
        self,
        phase: Phase,
        weights: Weights | None = None,
        lineage: Lineage | None = None,
    ) -> "Run":
        """A run that follows this one, from its weights and lineage unless others are given."""
        return replace(
            self,
            phase=phase,
            weights=weights or self.weights,
            lineage=lineage or self.lineage,
            record=Record(self.config, list(self.record.evaluations)),
        )


_Stages = Generator[list[Run] | Finished, list[Run], None]


class _Chain:
    """Jobs that wait for one another, and the runs of the stage they have reached."""

    def __init__(self, order: int, stages: _Stages) -> None:
        self.order, self.stages = order, stages
        self.runs: list[Run] = []
        self.ended: set[int] = set()

    def decided(self) -> list[Run] | None:
        """The runs of this stage up to the first at the goal; None while earlier ones train."""
        for n, run in enumerate(self.runs):
            if n not in self.ended:
                return None
            if run.record.at_goal:
                return self.runs[: n + 1]
        return self.runs


class Chains:
    """The queue of all runs, from which backends take one at a time; safe for many threads."""

    def __init__(self, work: Sequence[Work], losses_without: LossesWithout) -> None:
        """Queue all jobs, narrow models of independent widths first.

        Those seldom stop early, and a long run started last would leave other threads idle. For the
        same reason the second way to narrow a model can be taken before the first is known to fail,
        but only if no run waits that is needed in any case.
        """
        self._changed = Condition()
        self._serial = itertools.count()
        self._waiting: list[tuple[int, int, int, Run]] = []
        self._chain_of: dict[Run, _Chain] = {}
        # Chains begin when they are taken: the initial weights of a whole study would not fit the
        # memory.
        self._to_begin = deque(
            (index, w, jobs) for index, w in enumerate(work) for jobs in w.dependent()
        )
        self._open = len(self._to_begin)
        self._orders = itertools.count()
        self._losses_without = losses_without
        self._stopped = False

    def take(self, *, wait: bool = True) -> Run | None:
        """The next run; None if all have ended, or if none waits and `wait` is false."""
        while True:
            with self._changed:
                if self._stopped:
                    return None
                self._drop_stale()
                surest = self._waiting[0][0] if self._waiting else None
                if surest != 0 and self._to_begin:
                    begin = self._to_begin.popleft()
                    chain = _Chain(next(self._orders), _models(*begin, self._losses_without))
                elif self._waiting:
                    run = heapq.heappop(self._waiting)[-1]
                    run.taken = True
                    return run
                elif wait and self._open:
                    self._changed.wait()
                    continue
                else:
                    return None
            self._advance(chain, None)

    def _drop_stale(self) -> None:
        """Remove entries at the head of the queue whose run is taken or no longer wanted."""
        while self._waiting:
            run = self._waiting[0][-1]
            if not run.taken and run in self._chain_of:
                return
            heapq.heappop(self._waiting)

    def wanted(self, run: Run) -> bool:
        """Whether the run's end can still change which model is kept; if not, drop the run."""
        return run in self._chain_of and not self._stopped

    def bring_back(self, run: Run) -> list[Finished]:
        """Accept a trained run; return the models that are finished by it."""
        with self._changed:
            chain = self._chain_of.get(run)
            if chain is None:
                return []
            chain.ended.add(chain.runs.index(run))
            found = chain.decided()
            if found is None:
                self._queue(chain)
                return []
            for other in chain.runs:
                del self._chain_of[other]
        return self._advance(chain, found)

    def stop(self) -> None:
        """From now on `take` returns None and no run is wanted."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _advance(self, chain: _Chain, found: list[Run] | None) -> list[Finished]:
        """Queue the chain's next runs. They are made outside the lock: ranking units takes long."""
        events: list[Finished] = []
        following = next(chain.stages) if found is None else chain.stages.send(found)
        while isinstance(following, Finished):
            events.append(following)
            following = next(chain.stages, [])
        with self._changed:
            chain.runs, chain.ended = following, set()
            self._chain_of.update(dict.fromkeys(following, chain))
            self._open -= not following
            self._queue(chain)
            self._changed.notify_all()
        return events

    def _queue(self, chain: _Chain) -> None:
        """Queue runs not taken yet by how many others must fail before their end counts."""
        ahead = 0
        for n, run in enumerate(chain.runs):
            if not run.taken:
                entry = (ahead, chain.order, next(self._serial), run)
                heapq.heappush(self._waiting, entry)
            ahead += n not in chain.ended


def _models(index: int, work: Work, jobs: Sequence[Job], losses: LossesWithout) -> _Stages:
    """For each job yield lists of runs, receive those trained, then yield the finished model."""
    config = work.config
    parent: Parent | None = None
    for job in jobs:
        wider = config.parent(job.d_hidden)
        # The wider model ended in an earlier session, or it is the one before in this loop.
        parent = work.parents.get(Job(wider, job.seed), parent) if wider is not None else None
        run = partial(Run, index, config, job)
        if parent is None:
            kept, tries = (yield [_widest(run, config, job)])[0], 1
        else:
            kept, tries = yield from _narrower(run, config, job, parent, losses)
        lineage = kept.lineage._replace(tries=tries)
        parent = Parent(kept.weights, lineage.units)
        yield Finished(job, kept.record, kept.weights, lineage=lineage if config.narrow else None)


def _widest(run: Callable[..., Run], config: SweepConfig, job: Job) -> Run:
    """The run of a model that starts from initial weights."""
    weights = Weights(*initial_weights(config.p, *job, config.init_scale))
    lineage = Lineage(tuple(range(job.d_hidden)))
    # Early in its training each frequency of the widest model is served by one or two units, and
    # chains from it seldom get below width 6; at the end some are served by several units.
    chain = config.narrow is not None
    phase = config.narrow.widest(config.recipe) if config.narrow else config.recipe
    return run(phase, weights, lineage, Record(config), to_end=chain)


def _narrower(
    run: Callable[..., Run], config: SweepConfig, job: Job, parent: Parent, losses: LossesWithout
) -> Generator[list[Run], list[Run], tuple[Run, int]]:
    """The stages of `Narrowing` at one width; returns the run kept and the number of starts."""
    narrow, recipe = config.narrow, config.recipe
    assert narrow is not None

    def runs(phase: Phase, starts: Iterable[tuple[Weights, Lineage]]) -> list[Run]:
        return [run(phase, *start, Record(config)) for start in starts]

    starts = narrowed(config, job, parent, losses)
    tries = 0
    if nothing_goes(parent, starts[0][1]):
        settled = yield runs(config.settling, starts[:1])
        tries = 1
        if settled[0].record.at_goal:
            return settled[0], tries
    tried = yield runs(recipe, starts)
    kept, tries = _kept(tried), tries + len(tried)
    if narrow.redraws_at(job.d_hidden) and not kept.record.at_goal:
        again = [
            kept.again(recipe, *start)
            for start in redrawn(config, job, kept.weights, kept.lineage, losses)
        ]
        more = (yield again) if again else []
        kept, tries = _kept([*tried, *more]), tries + len(more)
    if narrow.last_at(job.d_hidden) and not kept.record.at_goal:
        best = sorted(tried, key=_train_loss)[: narrow.last_tries]
        kept = _kept((yield [one.again(narrow.last) for one in best]))
    return kept, tries


def _train_loss(run: Run) -> float:
    loss = run.record.evaluations[-1].train_loss
    return math.inf if math.isnan(loss) else loss


def _kept(tried: Sequence[Run]) -> Run:
    """The last of `tried` if it reached the goal (no other can have), else the first.

    Not the run of least loss: at narrow widths it fits the training pairs with more frequencies,
    each inexactly, and narrower models that start from it seldom reach the goal.
    """
    return tried[-1] if tried[-1].record.at_goal else tried[0]
