import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilinear.interactions import interaction_matrices


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 17), st.integers(1, 7), st.integers(0, 2**31))
def test_quadratic_form_is_the_logit(d: int, d_in: int, d_out: int, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    w_l, w_r, w_p, x = (
        torch.randn(*shape, generator=source, dtype=torch.float64)
        for shape in ((3, d, d_in), (3, d, d_in), (3, d_out, d), (5, d_in))
    )
    q = interaction_matrices(w_l, w_r, w_p)
    assert torch.equal(q, q.mT)
    logits = torch.einsum("mhi,ni,mhj,nj,moh->mno", w_l, x, w_r, x, w_p)
    torch.testing.assert_close(torch.einsum("ni,moij,nj->mno", x, q, x), logits)


def test_chosen_outputs_are_those_of_all() -> None:
    w_l, w_r, w_p = torch.randn(2, 6), torch.randn(2, 6), torch.randn(5, 2)
    every = interaction_matrices(w_l, w_r, w_p)
    torch.testing.assert_close(
        interaction_matrices(w_l, w_r, w_p, outputs=(4, 0)), every[[4, 0]], rtol=1e-6, atol=1e-6
    )
