"""The implementation on torch's matmuls against `eager`."""

import itertools

import pytest
import torch
from torch import Tensor

from bilinear.layer import eager, matmuls
from bilinear.layer.call import Call


@pytest.mark.parametrize("m", [0, 1, 41, 20000])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("save_preact", [False, True])
@pytest.mark.parametrize(("d_out", "gate"), [(None, "identity"), (4, "identity"), (4, "silu")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])  # torch's passes, or compiled
def test_the_composition(
    m: int, bias: bool, save_preact: bool, d_out: int | None, gate: str, dtype: torch.dtype
) -> None:
    this = Call(m, 5, 3, d_out, dtype, torch.device("cpu"), gate=gate)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype)

    x, weight, w_p = random(m, 5), random(6, 5), random(d_out, 3) if d_out else None
    b = random(6) if bias else None
    b_p = random(d_out) if bias and d_out else None
    dout = random(m, d_out or 3)
    torch.use_deterministic_algorithms(True)  # unwritten memory reads as NaN
    try:
        out, preact = matmuls.forward(this, x, weight, b, w_p, b_p, save_preact=save_preact)
        assert (preact is not None) == save_preact
        composed = eager.compose(x, weight, b, w_p, b_p, gate=gate)
        # Of 80,000 float32 numbers one in a thousand draws differs by more than torch's default,
        # so single numbers have a wide bound and their norm a narrow one.
        close = {} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-4}
        torch.testing.assert_close(out, composed, **close)
        assert (out - composed).norm() <= 1e-6 * composed.norm()
        before = None if preact is None else preact.clone()
        for needs in itertools.product([False, True], repeat=5):
            needs = (*needs[:3], needs[3] and w_p is not None, needs[4] and w_p is not None)
            found = matmuls.backward(this, dout, x, weight, b, w_p, preact, needs=needs)
            want = eager.backward(this, dout, x, weight, b, w_p, None, needs=needs)
            for mine, theirs in zip(found, want, strict=True):
                close = (
                    {} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5 * (1 + m**0.5)}
                )
                torch.testing.assert_close(mine, theirs, **close)
            assert before is None or torch.equal(preact, before)  # saved tensors are not written to
    finally:
        torch.use_deterministic_algorithms(False)
