"""Which hidden units a model loses when it is narrowed."""

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

# Mean loss (nats) on the training pairs of a model without each of its units, in their order.
# Arguments: its config, seed and weights.
LossesWithout = Callable[[SweepConfig, int, Weights], list[float]]


class Way(NamedTuple):
    """Units of the wider model, by row: those left out, and those whose weights become zero."""

    dropped: tuple[int, ...]
    silenced: tuple[int, ...] = ()


def ways_to_narrow(
    config: SweepConfig, job: Job, wider: Weights, losses_without: LossesWithout
) -> list[Way]:
    """Ways to leave out units of the wider model for `job`, in the order of `Narrowing`.

    If several units must go, each is chosen after the one before was left out.
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
    """Units with an amplitude in the order to lose them, grouped by what is silenced together."""
    assert config.narrow is not None
    order = order_of_units(config, job, model, losses_without)
    alive = living(model)
    order = [unit for unit in order if alive[unit]]
    if config.narrow.drop != "circuit":
        return [[unit] for unit in order]
    served = serving_units(model).frequency.tolist()
    return [list(units) for _, units in itertools.groupby(order, key=served.__getitem__)]


def living(model: Weights) -> list[bool]:
    """Whether each unit has an amplitude; weight decay takes it from units that do nothing."""
    own = serving_units(model).amplitude
    return (own > _DEAD * own.max()).tolist()


def strongest_circuit(model: Weights) -> tuple[int, list[int]]:
    """The frequency that would be lost last, and the rows of the living units that serve it."""
    last = _weakest_circuits_first(model)[-1]
    served = serving_units(model).frequency.tolist()
    alive = living(model)
    units = [unit for unit, k in enumerate(served) if k == served[last] and alive[unit]]
    return served[last], units


def order_of_units(
    config: SweepConfig, job: Job, model: Weights, losses_without: LossesWithout
) -> list[int]:
    """Rows of a model's units, the first to lose first."""
    assert config.narrow is not None
    d = len(model.w_l)
    if config.narrow.drop == "random":
        source = generator("drop", config.p, job.d_hidden, job.seed, d)
        return torch.randperm(d, generator=source).tolist()
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
    """Units without amplitude, then by the whole amplitude of their frequency, then by their own.

    Dropping the unit whose loss costs least, one after another, thins all circuits alike, down to
    one unit per frequency, which is right on few pairs; this order keeps some circuits whole.
    Frequencies that share a factor with p come first: such a circuit gives several classes the same
    logit, so it cannot be the last one.
    """
    p = len(model.w_p)
    units = serving_units(model)
    own, served = units.amplitude, units.frequency
    whole = torch.zeros(p // 2 + 1, dtype=own.dtype).index_add_(0, served, own)
    alive = living(model)
    alone = [math.gcd(k, p) == 1 for k in served.tolist()]
    scores = list(zip(alive, alone, whole[served].tolist(), own.tolist(), strict=True))
    return sorted(range(len(scores)), key=scores.__getitem__)
