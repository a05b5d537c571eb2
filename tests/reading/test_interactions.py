import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilinear.layer.modules import BilinearMLP
from bilinear.reading.exact_circuit import exact_circuit
from bilinear.reading.interactions import (
    blocks,
    cross_block,
    interaction_matrices,
    logit_table,
    table_accuracy,
)
from bilinear.reference import Model, ModelConfig


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 17), st.integers(1, 7), st.integers(0, 2**31))
def test_quadratic_form_is_the_logit(d: int, d_in: int, d_out: int, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    w_l, w_r, w_p, x = (
        torch.randn(*shape, generator=source, dtype=torch.float64)
        for shape in ((3, d, d_in), (3, d, d_in), (3, d_out, d), (5, d_in))
    )
    q = interaction_matrices((w_l, w_r, w_p))
    assert torch.equal(q, q.mT)
    logits = torch.einsum("mhi,ni,mhj,nj,moh->mno", w_l, x, w_r, x, w_p)
    torch.testing.assert_close(torch.einsum("ni,moij,nj->mno", x, q, x), logits)


def test_chosen_outputs_are_those_of_all() -> None:
    w_l, w_r, w_p = torch.randn(2, 6), torch.randn(2, 6), torch.randn(5, 2)
    every = interaction_matrices((w_l, w_r, w_p))
    torch.testing.assert_close(
        interaction_matrices((w_l, w_r, w_p), output=(4, 0)), every[[4, 0]], rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(interaction_matrices((w_l, w_r, w_p), 4), every[4])


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 6), st.integers(2, 9), st.integers(0, 2**31))
def test_table_and_blocks_are_what_pairs_see(d: int, p: int, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    w_l, w_r, w_p = (
        torch.randn(*shape, generator=source, dtype=torch.float64)
        for shape in ((2, d, 2 * p), (2, d, 2 * p), (2, p, d))
    )
    q = interaction_matrices((w_l, w_r, w_p))
    aa, ab, bb = blocks(q)
    torch.testing.assert_close(cross_block((w_l, w_r, w_p)), ab)
    table = aa.diagonal(dim1=-2, dim2=-1).unsqueeze(-1) + bb.diagonal(dim1=-2, dim2=-1).unsqueeze(
        -2
    )
    torch.testing.assert_close(logit_table((w_l, w_r, w_p)), table + 2 * ab)
    torch.testing.assert_close(logit_table((w_l, w_r, w_p), [p - 1]), (table + 2 * ab)[:, p - 1 :])
    torch.testing.assert_close(cross_block((w_l, w_r, w_p), [p - 1]), ab[:, p - 1 :])


def test_table_accuracy_counts_ties_as_wrong() -> None:
    tables = logit_table(exact_circuit(9, dtype=torch.float64))
    assert table_accuracy(tables) == 1
    tables[3, 1, 2] = tables[4, 1, 2]
    assert table_accuracy(tables).item() == 1 - 1 / 81
    assert table_accuracy(torch.zeros(2, 5, 5, 5)).tolist() == [0, 0]


def test_odd_inputs_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="q: expected"):
        blocks(torch.zeros(3, 5, 5))
    with pytest.raises(ValueError, match=r"w_l: expected d_in = 2p"):
        logit_table((torch.zeros(2, 5), torch.zeros(2, 5), torch.zeros(3, 2)))


def test_interactions_of_any_model_with_the_three_weights() -> None:
    mlp = BilinearMLP(9, 3, 5).double()
    q = mlp.interactions()
    assert q.shape == (5, 9, 9)
    assert not q.requires_grad
    x = torch.randn(7, 9, dtype=torch.float64)
    torch.testing.assert_close(torch.einsum("ni,oij,nj->no", x, q, x), mlp(x).detach())
    torch.testing.assert_close(mlp.interactions([4, 0]), q[[4, 0]])

    class Other:
        w_l, w_r, w_p = mlp.w_l, mlp.w_r, mlp.w_p

    assert torch.equal(interaction_matrices(Other()), q)
    with pytest.raises(
        ValueError, match="expected the identity gate, got silu: its outputs are no"
    ):
        BilinearMLP(9, 3, 5, gate="silu").interactions()
    reference = Model(ModelConfig(p=4, d_hidden=3))
    assert interaction_matrices(reference, [2]).shape == (1, 8, 8)


def test_identity_holds_to_1e_5_in_float32() -> None:
    p, model = 23, BilinearMLP(46, 16, 23)
    a, b = torch.arange(p).repeat_interleave(p), torch.arange(p).repeat(p)
    x = torch.zeros(p * p, 2 * p)
    x[torch.arange(p * p), a] = x[torch.arange(p * p), p + b] = 1
    logits = torch.einsum("ni,oij,nj->no", x, model.interactions(), x)
    expected = model.double()(x.double()).detach()
    assert expected.abs().max() > 0.03  # far above the tolerance
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-6)
