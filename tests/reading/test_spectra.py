import pytest
import torch
from torch import Tensor

from bilinear.experiment.task import modular_addition
from bilinear.reading.exact_circuit import exact_circuit
from bilinear.reading.interactions import direction, interaction_matrices
from bilinear.reading.spectra import (
    effective_rank,
    eigenpairs,
    eigenvalue_shares,
    eigenvalues,
    truncated_logits,
    truncation_accuracy,
)

SHAPES = [(1, 5, 3), (2, 17, 4), (3, 6, 2), (7, 9, 5)]  # 2d below, at and above d_in


def weights(*shape: int, models: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    d, d_in, d_out = shape
    double = torch.float64
    return (
        torch.randn(models, d, d_in, dtype=double),
        torch.randn(models, d, d_in, dtype=double),
        torch.randn(models, d_out, d, dtype=double),
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_eigenpairs_equal_the_dense_ones(shape: tuple[int, int, int]) -> None:
    w = weights(*shape)
    q = interaction_matrices(w)
    pairs = eigenpairs(w)
    r = min(2 * shape[0], shape[1])
    assert pairs.values.shape == (3, shape[2], r)
    dense = torch.linalg.eigvalsh(q)
    dense = dense.gather(-1, dense.abs().argsort(dim=-1, descending=True))
    torch.testing.assert_close(pairs.values, dense[..., :r])
    assert dense[..., r:].abs().max().item() < 1e-12 if r < shape[1] else True
    rebuilt = pairs.vectors @ (pairs.values.unsqueeze(-1) * pairs.vectors.mT)
    torch.testing.assert_close(rebuilt, q)
    gram = pairs.vectors.mT @ pairs.vectors
    torch.testing.assert_close(gram, torch.eye(r, dtype=gram.dtype).expand_as(gram))
    torch.testing.assert_close(eigenvalues(w), pairs.values)


def test_double_precision_on_request() -> None:
    w = [v.float() for v in weights(3, 11, 2)]
    assert eigenpairs(w).values.dtype == torch.float32
    double = eigenpairs(w, dtype=torch.float64).values
    exact = eigenvalues([v.double() for v in w])
    torch.testing.assert_close(double, exact)


def test_a_direction_is_the_sum_of_its_outputs() -> None:
    w_l, w_r, w_p = weights(3, 7, 5)
    u = torch.randn(3, 2, 5, dtype=torch.float64)
    q = interaction_matrices((w_l, w_r, direction(w_p, u)))
    expected = torch.einsum("mnc,mcij->mnij", u, interaction_matrices((w_l, w_r, w_p)))
    torch.testing.assert_close(q, expected)


def test_truncation_at_full_rank_loses_nothing() -> None:
    w_l, w_r, w_p = weights(4, 10, 5)
    x = torch.randn(23, 10, dtype=torch.float64)
    logits = torch.einsum("mhi,ni,mhj,nj,moh->mno", w_l, x, w_r, x, w_p)
    pairs = eigenpairs((w_l, w_r, w_p))
    torch.testing.assert_close(truncated_logits(pairs, x, 8), logits)
    fewer = truncated_logits(pairs, x, 7) - logits
    assert fewer.abs().max() > 1e-6
    labels = logits[0].argmax(-1)
    accuracy = truncation_accuracy(pairs, x, labels)
    assert accuracy.shape == (3, 9)
    assert accuracy[0, -1] == 1
    assert (accuracy[:, 0] == 0).all()
    expected = (truncated_logits(pairs, x, 3).argmax(-1) == labels).double().mean(-1)
    torch.testing.assert_close(accuracy[:, 3], expected)


def test_exact_circuit_needs_its_four_eigenvectors() -> None:
    x, labels = modular_addition(13).tensors
    w = exact_circuit(13, dtype=torch.float64)
    accuracy = truncation_accuracy(eigenpairs(w), x, labels)
    assert accuracy[-1] == 1
    assert accuracy[1] < 1


def test_shares_and_rank() -> None:
    values = torch.tensor([[3.0, -1.0, 0.0], [0.0, 0.0, 0.0], [2.0, -2.0, 2.0]])
    shares = eigenvalue_shares(values)
    torch.testing.assert_close(shares[0], torch.tensor([0.75, 0.25, 0.0]))
    assert (shares[1] == 0).all()
    torch.testing.assert_close(effective_rank(values)[2], torch.tensor(3.0))


def test_sides_of_two_shapes() -> None:
    with pytest.raises(ValueError, match="w_l, w_r: expected one shape"):
        eigenpairs((torch.randn(2, 5), torch.randn(3, 5), torch.randn(4, 2)))
