import random

import pytest
import torch
from kernel_checks import DEVICE, DTYPES

from bilinear.kernels.partials import Sum, add_shares, split_rows
from bilinear.kernels.tiles import blocks


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (5, 13), (33, 65)])
@pytest.mark.parametrize("splits", [2, 7, 9, 128, 133, 300])
def test_the_sum_of_all_shares(splits, shape, dtype):
    like = torch.empty(0, dtype=dtype, device=DEVICE)
    gradient = Sum(splits, shape, dtype)
    partial = gradient.memory(like)
    partial.normal_()
    exact = partial.double().sum(0)
    total = gradient.total(partial)
    assert total.dtype == dtype
    assert total.shape == shape
    scale = partial.double().abs().sum(0).max()
    assert (total.double() - exact).abs().max() <= 2 * torch.finfo(dtype).eps * scale
    assert torch.equal(total, add_shares(partial, dtype))


def test_a_lone_share_is_the_sum():
    gradient = Sum(1, (3, 4), torch.float64)
    partial = gradient.memory(torch.empty(0, dtype=torch.float64))
    assert partial.shape == (3, 4)
    assert gradient.total(partial) is partial


def test_every_row_is_in_one_split():
    for _ in range(300):
        m, programs = random.randrange(1, 10**6), random.randrange(1, 2000)
        block_m = 2 ** random.randrange(4, 9)
        splits, chunk = split_rows(m, programs, block_m)
        assert (splits - 1) * chunk < m <= splits * chunk
        assert chunk % block_m == 0
        # No more shares than fill a device, and none of less than four steps but a lone one.
        assert splits == 1 or (splits - 1) * programs < 132
        assert splits == 1 or blocks(m, block_m) >= 4 * splits
