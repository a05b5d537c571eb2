import pytest
import torch

from bilinear.reading.exact_circuit import exact_circuit
from bilinear.reading.hosvd import output_directions
from bilinear.reading.interactions import interaction_matrices, logit_table


@pytest.mark.parametrize(("d", "d_out"), [(2, 7), (5, 5), (6, 3)])
@pytest.mark.parametrize("functional", [False, True])
def test_singular_vectors_of_the_unfolded_tensor(d: int, d_out: int, functional: bool) -> None:
    w_l, w_r = torch.randn(3, d, 8).double(), torch.randn(3, d, 8).double()
    w_p = torch.randn(3, d_out, d).double()
    tensor = (logit_table if functional else interaction_matrices)((w_l, w_r, w_p))
    unfolded = tensor.flatten(-2)
    found = output_directions((w_l, w_r, w_p), functional=functional)
    r = min(d, d_out)
    u, s, _ = torch.linalg.svd(unfolded, full_matrices=False)
    torch.testing.assert_close(found.singular_values, s[..., :r])
    overlap = (found.directions.mT @ u[..., :r]).abs()
    torch.testing.assert_close(overlap, torch.eye(r, dtype=overlap.dtype).expand_as(overlap))


def test_exact_circuit_has_two_output_directions() -> None:
    found = output_directions(exact_circuit(12, dtype=torch.float64))
    assert found.directions.shape == (12, 2)
    turns = torch.arange(12).double() * 2 * torch.pi / 12
    plane = torch.stack([turns.cos(), turns.sin()], dim=1) / 6**0.5
    projected = plane @ (plane.mT @ found.directions)
    torch.testing.assert_close(projected, found.directions)
