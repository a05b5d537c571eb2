import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilinear.experiment.task import split_pairs


@settings(deadline=None)
@given(st.integers(2, 40), st.floats(0.3, 0.95), st.integers(0, 1000))
def test_split_holds_each_pair_once(p: int, train_frac: float, seed: int) -> None:
    split = split_pairs(p, train_frac, seed)
    flat = split.pairs[:, 0] * p + split.pairs[:, 1]
    assert torch.equal(flat.sort().values, torch.arange(p * p, dtype=torch.int32))
    assert split.n_train == int(train_frac * p * p)
    assert split.train_mask.sum() == split.n_train
    for part in (flat[: split.n_train], flat[split.n_train :]):
        assert (part.diff() > 0).all()


def test_seeds_draw_different_splits_that_repeat() -> None:
    assert torch.equal(split_pairs(64, 0.75, 3).pairs, split_pairs(64, 0.75, 3).pairs)
    both = split_pairs(64, 0.75, 3).train_mask & split_pairs(64, 0.75, 4).train_mask
    assert abs(both.float().mean().item() - 0.75**2) < 0.03
