import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilinear import BilinearMLP
from bilinear.errors import ConfigError
from bilinear.experiment.task import modular_addition
from bilinear.reading.exact_circuit import exact_circuit, exact_state_dict, smallest_margin
from bilinear.reading.interactions import interaction_matrices
from bilinear.reference import Model, ModelConfig


def margins(p: int, frequency: int, dtype: torch.dtype) -> torch.Tensor:
    model = Model(ModelConfig(p, 2)).to(dtype)
    model.load_state_dict(exact_state_dict(p, frequency, dtype))
    x, label = modular_addition(p).tensors
    with torch.no_grad():
        logits = model(x.to(dtype))
    right = logits.gather(1, label[:, None])[:, 0]
    return right - logits.scatter(1, label[:, None], -torch.inf).amax(1)


@pytest.mark.parametrize("p", [*range(2, 20), 59, 64, 97, 113, 128, 130])
def test_every_pair_is_right_in_float32(p: int) -> None:
    assert margins(p, 1, torch.float32).min() > 0


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 70), st.integers(1, 200))
def test_smallest_margin_is_the_closed_form_for_every_frequency(p: int, frequency: int) -> None:
    if torch.gcd(torch.tensor(p), torch.tensor(frequency)) != 1:
        with pytest.raises(ConfigError, match="coprime"):
            exact_circuit(p, frequency)
        return
    found = margins(p, frequency, torch.float64).min().item()
    assert found == pytest.approx(smallest_margin(p), rel=1e-6)


def test_known_interaction_matrices() -> None:
    """Q_c couples a and b by cos(θ(a+b−c)) and each token with itself by cos(θ(2a−c)), p odd."""
    p = 7
    q = interaction_matrices(exact_circuit(p, dtype=torch.float64))
    t = 2 * torch.pi * torch.arange(p, dtype=torch.float64) / p
    quarter = torch.cos(t[None, :, None] + t[None, None, :] - t[:, None, None])
    expected = torch.cat([torch.cat([quarter, quarter], 2), torch.cat([quarter, quarter], 2)], 1)
    torch.testing.assert_close(q, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("recompute", [False, True])
def test_every_pair_is_right_through_the_fused_layer(recompute: bool) -> None:
    model = BilinearMLP(128, 2, 64, recompute=recompute)
    model.load_state_dict(exact_state_dict(64))
    x, label = modular_addition(64).tensors
    assert (model(x).argmax(1) == label).all()


def test_bad_modulus() -> None:
    with pytest.raises(ConfigError, match="p: expected an integer ≥ 2, got 1"):
        exact_circuit(1)
