"""The kernels' rounding errors against eager PyTorch's own, both against float64, over many draws.

One draw of a small layer may come out of eager exact by luck, and then no ratio of errors means
anything; the root mean square over draws does. Biases are checked beside (`test_mlp.py`): eager
sums a column by several partial sums, more exactly than any matmul.
"""

from collections import Counter

import pytest
import torch
from kernel_checks import BY_GRADIENT, DTYPES, TILE, Eager, draw

from bilinear.kernels.dual import dual_backward, dual_forward
from bilinear.kernels.mlp import mlp_backward, mlp_forward

DRAWS = 6


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d is not torch.float64])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [(129, 65, 63, 17), (63, 64, 17, 65), (17, 63, 64, 129)], ids=str)
def test_error_is_within_a_tenth_of_eagers(size, bias, dtype):
    ours, eagers = Counter(), Counter()

    def count(name, actual, eager, exact):
        ours[name] += (actual.double() - exact).square().sum().item()
        eagers[name] += (eager.double() - exact).square().sum().item()

    for _ in range(DRAWS):
        case = draw(size, dtype, bias=bias, layout="contiguous")
        eager, exact = Eager(case), Eager(case.to(torch.float64))
        inputs = (case.x, case.weight, case.bias)
        h, preact = dual_forward(*inputs, precision="ieee", config=TILE, save_preact=True)
        dpreact, _ = dual_backward(case.dh, *inputs, precision="ieee", config=TILE)
        out = mlp_forward(*inputs, case.w_p, case.b_p, precision="ieee", config=TILE)
        found = mlp_backward(case.dout, *inputs, case.w_p, precision="ieee", config=BY_GRADIENT)
        count("h", h, eager.h, exact.h)
        count("preact", preact, eager.preact, exact.preact)
        count("dpreact", dpreact, eager.dpreact(case.dh), exact.dpreact(case.dh.double()))
        count("out", out, eager.out, exact.out)
        theirs, best = eager.mlp_gradients(), exact.mlp_gradients()
        for name in ("x", "weight", "w_p"):
            count(name, found[name], theirs[name], best[name])
    ratios = {name: (ours[name] / eagers[name]) ** 0.5 for name in ours}
    assert all(ratio <= 1.1 for ratio in ratios.values()), ratios
    assert all(value > 0 for value in eagers.values())
