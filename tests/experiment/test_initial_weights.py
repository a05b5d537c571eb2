"""Initial weights: shapes, bounds, independence of the three matrices."""

import torch

from bilinear.experiment.initial_weights import initial_weights


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
