import pytest
import torch
from torch import Tensor

from bilinear.reading.exact_circuit import exact_circuit
from bilinear.reading.fourier import (
    ablate_frequencies,
    amplitudes,
    circuit_table,
    cross_spectrum,
    frequencies,
    frequency_shares,
    interaction_power,
    keep_frequencies,
    serving_units,
    table_amplitudes,
    unit_amplitudes,
    units_per_frequency,
    used_frequencies,
)
from bilinear.reading.interactions import cross_block, logit_table, table_accuracy


def random_model(p: int, d: int, models: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    double = torch.float64
    return (
        torch.randn(models, d, 2 * p, dtype=double),
        torch.randn(models, d, 2 * p, dtype=double),
        torch.randn(models, p, d, dtype=double),
    )


@pytest.mark.parametrize(("p", "k"), [(7, 1), (7, 3), (12, 5), (31, 4), (64, 9)])
def test_exact_circuit_has_exactly_one_frequency(p: int, k: int) -> None:
    w = exact_circuit(p, k, dtype=torch.float64)
    shares = frequency_shares(w)
    expected = torch.zeros(p // 2 + 1, dtype=torch.float64)
    expected[k] = 1
    torch.testing.assert_close(shares, expected, rtol=1e-9, atol=1e-9)
    assert used_frequencies(shares).nonzero().flatten().tolist() == [k]
    assert frequencies(w).tolist() == [k]
    amplitude = amplitudes(w)[k]
    torch.testing.assert_close(amplitude, torch.tensor(2 + 0j, dtype=torch.complex128))
    assert serving_units(w).frequency.tolist() == [k, k]
    torch.testing.assert_close(serving_units(w).share, torch.ones(2, dtype=torch.float64))
    assert units_per_frequency(w).tolist() == [2 * (i == k) for i in range(p // 2 + 1)]


@pytest.mark.parametrize("d", [1, 4, 40])
def test_random_model_has_none(d: int) -> None:
    shares = frequency_shares(random_model(31, d, models=8))
    assert not used_frequencies(shares).any()


@pytest.mark.parametrize("p", [7, 8])
def test_amplitudes_are_those_of_the_logits(p: int) -> None:
    w = random_model(p, 3)
    tables = logit_table(w)
    torch.testing.assert_close(amplitudes(w), table_amplitudes(tables))
    torch.testing.assert_close(unit_amplitudes(w).sum(-2), amplitudes(w))
    interaction = tables
    for dim in (-3, -2, -1):
        interaction = interaction - interaction.mean(dim=dim, keepdim=True)
    power = interaction.square().mean(dim=(-3, -2, -1))
    torch.testing.assert_close(interaction_power(w), power)
    for k in range(1, p // 2 + 1):
        part = circuit_table(amplitudes(w)[..., k], k, p)
        share = part.square().mean(dim=(-3, -2, -1)) / power
        torch.testing.assert_close(frequency_shares(w)[..., k], share)
        left = table_amplitudes(tables - part)
        assert left[..., k].abs().max() < 1e-12


def test_gauge_does_not_enter() -> None:
    w_l, w_r, w_p = random_model(9, 4)
    shares = frequency_shares((w_l, w_r, w_p))
    torch.testing.assert_close(frequency_shares((w_l, w_r, w_p + torch.randn(2, 1, 4))), shares)


def test_spectrum_of_the_cross_block() -> None:
    w = exact_circuit(15, 4, dtype=torch.float64)
    spectrum = cross_spectrum(2 * cross_block(w))[6]
    expected = torch.zeros(15, 15, dtype=torch.float64)
    expected[7 + 4, 7 + 4] = expected[7 - 4, 7 - 4] = 1
    torch.testing.assert_close(spectrum, expected)


def test_ablating_the_only_frequency_costs_everything() -> None:
    p = 11
    one, two = (exact_circuit(p, k, dtype=torch.float64) for k in (2, 5))
    tables = logit_table(one)
    ablation = ablate_frequencies(tables)
    assert ablation.accuracy == 1
    assert ablation.cost[2] > 0.5  # the terms in a alone and b alone are left
    assert ablation.cost[[0, 1, 3, 4, 5]].abs().max() == 0
    both = tables + logit_table(two)
    assert table_accuracy(keep_frequencies(both, torch.tensor([2, 5]))) == 1
    assert table_accuracy(keep_frequencies(both, torch.tensor([]))) == 0


def test_projection_of_another_modulus() -> None:
    w_l, w_r, _ = random_model(5, 2)
    with pytest.raises(ValueError, match=r"w_p: expected \(…, p, d\) = \(…, 5, 2\)"):
        amplitudes((w_l, w_r, torch.randn(2, 6, 2).double()))


@pytest.mark.parametrize(("p", "k", "shift"), [(7, 2, 1), (31, 4, -3), (12, 5, 2)])
def test_phase_is_how_far_a_circuit_points_from_the_sum(p: int, k: int, shift: int) -> None:
    w = exact_circuit(p, k, dtype=torch.float64)
    before = serving_units(w).phase
    w["w_p"] = w["w_p"].roll(shift, dims=0)  # class c now has the logit of class c − shift
    turn = torch.polar(
        torch.tensor(1.0, dtype=torch.float64),
        torch.tensor(2 * torch.pi * k * shift / p, dtype=torch.float64),
    )
    torch.testing.assert_close(amplitudes(w)[k], 2 * turn)
    turned = torch.exp(1j * (serving_units(w).phase - before))
    torch.testing.assert_close(turned, turn.expand(2))
