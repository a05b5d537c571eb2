"""Starts of narrower models: the strongest circuit is kept, a unit drawn at its frequency."""

import pytest
import torch

from bilinear.experiment.config import SweepConfig
from bilinear.experiment.narrowing import Narrowing
from bilinear.experiment.record import Job, Lineage, Weights
from bilinear.reading.fourier import unit_amplitudes
from bilinear.training import starts

CONFIG = SweepConfig(p=7, widths=(8, 4), remainders=(), narrow=Narrowing(redraws=2))


def serving(*units: tuple[int, float, float], p: int = 7) -> Weights:
    """A unit for each (frequency, phase, amplitude)."""
    angle = 2 * torch.pi * torch.arange(p) / p
    wave = torch.stack([size * torch.cos(k * angle + phase) for k, phase, size in units])
    side = torch.cat([wave, wave], 1)
    return Weights(side, side, wave.T.contiguous())


def test_a_strongest_circuit_of_two_units_gets_a_third_at_its_frequency() -> None:
    model = serving((3, 0, 2), (3, 1, 2), (1, 0, 1), (2, 0, 1))
    lineage = Lineage((5, 2, 7, 1), 6, (0,))
    found = starts.redrawn(CONFIG, Job(4, 0), model, lineage, lambda *_: [])
    assert len(found) == 2
    for weights, after in found:
        assert after == lineage._replace(units=(5, 2, 8 + 4, 1), redrawn=7)
        assert all(map(torch.equal, weights.of_units([0, 1]), model.of_units([0, 1])))
        assert not any(rows.any() for rows in weights.of_units([3]))
        share = unit_amplitudes(weights)[2].abs()
        assert share[3] > 1e5 * share[:3].max()
        for mine, other in zip(weights.of_rows(), model.of_rows(), strict=True):
            assert mine[2].norm() == pytest.approx(other[0].norm().item(), rel=1e-5)
    assert not torch.equal(found[0][0].w_l, found[1][0].w_l)


def test_a_circuit_of_three_units_is_left_alone_and_a_whole_model_of_one_as_it_is() -> None:
    three = [(3, float(phase), 2.0) for phase in range(3)]
    lineage = Lineage((5, 2, 7, 1), 6, (0,))
    one = starts.redrawn(CONFIG, Job(4, 0), serving(*three, (1, 0, 1)), lineage, lambda *_: [])
    ((weights, same),) = one
    assert same == lineage
    assert not any(rows.any() for rows in weights.of_units([3]))
    whole = serving(*three, (3, 3, 2))
    assert starts.redrawn(CONFIG, Job(4, 0), whole, lineage, lambda *_: []) == []
