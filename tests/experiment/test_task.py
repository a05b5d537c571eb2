import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilinear.experiment.initial_weights import initial_weights
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


def test_each_width_has_its_own_fan_in() -> None:
    for d in (1, 4, 64):
        w_l, w_r, w_p = initial_weights(64, d, seed=0)
        assert (w_l.shape, w_r.shape, w_p.shape) == ((d, 128), (d, 128), (64, d))
        for w, fan_in in ((w_l, 128), (w_r, 128), (w_p, d)):
            bound = fan_in**-0.5
            assert 0.9 * bound < w.abs().max() <= bound
            assert abs(w.std() / (bound / 3**0.5) - 1) < 0.2
    assert not torch.equal(w_l, w_r)
    doubled = initial_weights(64, 64, seed=0, scale=2.0)
    torch.testing.assert_close(doubled[2], 2 * w_p)
