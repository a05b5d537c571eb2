"""Which hidden units a model loses when it is narrowed: by its weights, or the training pairs."""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from bilinear.experiment.config import SweepConfig
from bilinear.experiment.record import Job, Weights
from bilinear.experiment.streams import generator
from bilinear.reading.fourier import serving_units

_DEAD = 1e-3  # of a model's largest amplitude

# Of a model of this config and seed: the mean loss (nats) on its training pairs without each unit.
LossesWithout = Callable[[SweepConfig, int, Weights], list[float]]


class Way(NamedTuple):
    """Rows of the wider model's units that go, and rows of those whose weights become zero."""

    dropped: tuple[int, ...]
    silenced: tuple[int, ...] = ()


def ways_to_narrow(
    config: SweepConfig, job: Job, wider: Weights, losses_without: LossesWithout
) -> list[Way]:
    """Ways to leave out units of the wider model for `job`, the most promising first.

    Several units at once are chosen one after another. See `Narrowing` for the order.
    """
    narrow = config.narrow
    assert narrow is not None
    d = len(wider.w_l)
    tries = narrow.tries_at(d)
    if job.d_hidden <= narrow.last_up_to and d - job.d_hidden == 1:
        order = order_of_units(config, job, wider, losses_without)
        return [Way((unit,)) for unit in order[:tries]]
    left = list(range(d))
    while len(left) > job.d_hidden:
        del left[order_of_units(config, job, wider.of_units(left), losses_without)[0]]
    dropped = tuple(sorted(set(range(d)) - set(left)))
    ways = [Way(dropped)]
    if job.d_hidden <= narrow.last_up_to:
        return ways
    silenced: list[int] = []
    groups = _groups(config, job, wider.of_units(left), losses_without)
    for group in groups[:-1][: tries - 1]:
        silenced += [left[unit] for unit in group]
        ways.append(Way(dropped, tuple(sorted(silenced))))
    return ways


def _groups(
    config: SweepConfig, job: Job, model: Weights, losses_without: LossesWithout
) -> list[list[int]]:
    """Units that are silenced together, in the order of units; those without amplitude are."""
    assert config.narrow is not None
    order = order_of_units(config, job, model, losses_without)
    alive = living(model)
    order = [unit for unit in order if alive[unit]]
    if config.narrow.drop != "circuit":
        return [[unit] for unit in order]
    served = serving_units(model).frequency.tolist()
    return [list(units) for _, units in itertools.groupby(order, key=served.__getitem__)]


def living(model: Weights) -> list[bool]:
    """Of each unit whether weight decay has left it an amplitude."""
    own = serving_units(model).amplitude
    found: list[bool] = (own > _DEAD * own.max()).tolist()
    return found


def strongest_circuit(model: Weights) -> tuple[int, list[int]]:
    """The frequency that would go last, and the rows of the units that serve it."""
    last = _weakest_circuits_first(model)[-1]
    served = serving_units(model).frequency.tolist()
    alive = living(model)
    units = [unit for unit, k in enumerate(served) if k == served[last] and alive[unit]]
    return served[last], units


def order_of_units(
    config: SweepConfig, job: Job, model: Weights, losses_without: LossesWithout
) -> list[int]:
    """Rows of a model's units, the one to lose first before all others."""
    assert config.narrow is not None
    d = len(model.w_l)
    if config.narrow.drop == "random":
        source = generator("drop", config.p, job.d_hidden, job.seed, d)
        order: list[int] = torch.randperm(d, generator=source).tolist()
        return order
    if config.narrow.drop == "circuit":
        return _weakest_circuits_first(model)
    if config.narrow.drop == "norm":
        w_l, w_r, w_p = (w.double() for w in model)
        scores = (w_l.norm(dim=1) * w_r.norm(dim=1) * w_p.norm(dim=0)).tolist()
    else:
        scores = losses_without(config, job.seed, model)
    scores = [math.inf if math.isnan(score) else score for score in scores]
    return sorted(range(d), key=scores.__getitem__)


def _weakest_circuits_first(model: Weights) -> list[int]:
    """Units that weight decay has left without amplitude, then the rest by circuit.

    A unit counts with all that serve the same frequency, then by its own amplitude.

    Leaving units out one by one by what each is missed thins every circuit alike, down to a unit a
    frequency, which is right on few pairs; this keeps some circuits whole. A frequency that shares
    a factor with p gives two classes the same logit, so it cannot be the last one.
    """
    p = len(model.w_p)
    units = serving_units(model)
    own, served = units.amplitude, units.frequency
    whole = torch.zeros(p // 2 + 1, dtype=own.dtype).index_add_(0, served, own)
    alive = living(model)
    alone = [math.gcd(k, p) == 1 for k in served.tolist()]
    scores = list(zip(alive, alone, whole[served].tolist(), own.tolist(), strict=True))
    return sorted(range(len(scores)), key=scores.__getitem__)
