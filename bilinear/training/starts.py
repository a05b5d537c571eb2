"""Weights that narrower models start from: a wider model's without the units that are dropped."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bilinear.experiment.config import SweepConfig
from bilinear.experiment.initial_weights import initial_weights
from bilinear.experiment.record import Job, Lineage, Parent, Weights
from bilinear.training.drops import (
    LossesWithout,
    living,
    order_of_units,
    strongest_circuit,
    ways_to_narrow,
)

# Three units of one frequency become right on all pairs by training; two can, but need far longer.
_UNITS_AT_REST = 3

Start = tuple[Weights, Lineage]


def narrowed(
    config: SweepConfig, job: Job, parent: Parent, losses_without: LossesWithout
) -> list[Start]:
    """Starts for `job` from the wider model, one for each way of `ways_to_narrow`."""
    wider = len(parent.units)
    starts = []
    for way in ways_to_narrow(config, job, parent.weights, losses_without):
        kept = [unit for unit in range(wider) if unit not in way.dropped]
        units = tuple(parent.units[unit] for unit in kept)
        dropped = tuple(parent.units[unit] for unit in way.dropped)
        weights = _without(parent.weights, way.silenced).of_units(kept)
        starts.append((weights, Lineage(units, wider, dropped)))
    return starts


def nothing_goes(parent: Parent, lineage: Lineage) -> bool:
    """Whether all units that were dropped had no amplitude."""
    alive = living(parent.weights)
    return not any(alive[parent.units.index(name)] for name in lineage.dropped)


def redrawn(
    config: SweepConfig, job: Job, weights: Weights, lineage: Lineage, losses: LossesWithout
) -> list[Start]:
    """Starts from the same model with one unit drawn anew, each with other random numbers.

    The order "circuit" first silences all units but those of the strongest circuit; with three or
    more of them, that model is the only start. There is none if all units are of that circuit.
    """
    narrow = config.narrow
    assert narrow is not None
    frequency = None
    if narrow.drop != "circuit":
        unit = order_of_units(config, job, weights, losses)[0]
    else:
        frequency, units = strongest_circuit(weights)
        weights = _without(weights, [i for i in range(job.d_hidden) if i not in units])
        if len(units) == job.d_hidden:
            return []
        if len(units) >= _UNITS_AT_REST:
            return [(weights, lineage)]
        unit, size = living(weights).index(False), weights.of_units(units[:1])
    names = list(lineage.units)
    gone, names[unit] = names[unit], max(config.widths) + job.d_hidden
    lineage = lineage._replace(units=tuple(names), redrawn=gone)
    starts = []
    for n in range(narrow.redraws_at(job.d_hidden)):
        drawn = Weights(*initial_weights(config.p, *job, config.init_scale, redraw=n + 1))
        one = drawn.of_units([unit])
        if frequency is not None:
            one = _at_frequency(one, frequency, size)
        start = _without(weights, [unit])
        for old, new in zip(start.of_rows(), one.of_rows(), strict=True):
            old[unit] = new[0]
        starts.append((start, lineage))
    return starts


def _without(weights: Weights, silenced: Sequence[int]) -> Weights:
    """A copy with the weights of `silenced` units zero; they stay zero, as their gradient is."""
    copy = Weights(*(w.clone() for w in weights))
    for rows in copy.of_rows():
        rows[list(silenced)] = 0
    return copy


def _at_frequency(one: Weights, frequency: int, size: Weights) -> Weights:
    """The part of a unit (d = 1) at a frequency, each row scaled to the norm of `size`'s row."""
    p = len(one.w_p)
    rows = [
        torch.cat([_filtered(part, frequency) for part in row[0].split(p)]) for row in one.of_rows()
    ]
    w_l, w_r, w_p = (
        (row * (like[0].double().norm() / row.norm())).float()
        for row, like in zip(rows, size.of_rows(), strict=True)
    )
    return Weights(w_l[None], w_r[None], w_p[:, None])


def _filtered(row: Tensor, frequency: int) -> Tensor:
    spectrum = torch.fft.rfft(row.double())
    alone = torch.zeros_like(spectrum)
    alone[frequency] = spectrum[frequency]
    return torch.fft.irfft(alone, n=len(row))
