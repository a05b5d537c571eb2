"""Blocks of rows give what one block gives, on any number of threads."""

import itertools

import pytest
import torch
from torch import Tensor

from bilinear.layer import eager, matmuls
from bilinear.layer.call import Call

CPU = torch.device("cpu")


def call(
    m: int, d_in: int, d: int, d_out: int | None, dtype: torch.dtype, gate: str = "identity"
) -> Call:
    return Call(m, d_in, d, d_out, dtype, CPU, gate=gate)


@pytest.mark.parametrize("m", [0, 1, 7, 8, 9, 40, 41])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("save_preact", [False, True])
@pytest.mark.parametrize(("d_out", "gate"), [(None, "identity"), (4, "identity"), (4, "silu")])
def test_blocks_equal_the_composition(
    m: int,
    bias: bool,
    save_preact: bool,
    d_out: int | None,
    gate: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(matmuls, "_BLOCK_ELEMENTS", 1)
    monkeypatch.setattr(matmuls, "_MIN_ROWS", 8)
    this = call(m, 5, 3, d_out, torch.float64, gate)
    assert matmuls.block_rows(this) == (8 if m > 0 else 0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    x, weight, w_p = random(m, 5), random(6, 5), random(d_out, 3) if d_out else None
    b = random(6) if bias else None
    b_p = random(d_out) if bias and d_out else None
    dout = random(m, d_out or 3)
    torch.use_deterministic_algorithms(True)  # memory that nobody wrote reads as NaN
    try:
        out, preact = matmuls.forward(this, x, weight, b, w_p, b_p, save_preact=save_preact)
        assert (preact is not None) == save_preact
        torch.testing.assert_close(out, eager.compose(x, weight, b, w_p, b_p, gate=gate))
        before = None if preact is None else preact.clone()
        for needs in itertools.product([False, True], repeat=5):
            needs = (*needs[:3], needs[3] and w_p is not None, needs[4] and w_p is not None)
            found = matmuls.backward(this, dout, x, weight, b, w_p, preact, needs)
            want = eager.backward(this, dout, x, weight, b, w_p, None, needs)
            for mine, theirs in zip(found, want, strict=True):
                torch.testing.assert_close(mine, theirs)
            assert before is None or torch.equal(preact, before)  # nothing saved is written to
    finally:
        torch.use_deterministic_algorithms(False)


def test_blocks_are_taken_where_they_pay_only() -> None:
    def rows(m: int, d_in: int, dtype: torch.dtype = torch.float32) -> int:
        return matmuls.block_rows(call(m, d_in, 1024, None, dtype))

    assert rows(16384, 64) == 1024
    assert rows(16384, 1024) == 16384
    assert rows(16384, 64, torch.bfloat16) == 16384
    assert rows(64, 64) == 64
    assert rows(0, 64) == 0
    meta = call(16384, 64, 1024, None, torch.float32)._replace(device=torch.device("meta"))
    assert matmuls.block_rows(meta) == 16384


def test_blocks_do_not_depend_on_the_number_of_threads() -> None:
    this = call(5000, 33, 700, 9, torch.float32)
    assert matmuls.block_rows(this) < 5000
    x, weight, w_p = (torch.randn(s) for s in ((5000, 33), (1400, 33), (9, 700)))
    dout, threads = torch.randn(5000, 9), torch.get_num_threads()
    blocks = set()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            blocks.add(matmuls.block_rows(this))
            found = matmuls.backward(
                this, dout, x, weight, None, w_p, None, (True, True, False, True, False)
            )
            want = eager.backward(
                this, *(None if t is None else t.double() for t in (dout, x, weight, None, w_p)),
                None, (True, True, False, True, False),
            )  # fmt: skip
            for mine, exact in zip(found, want, strict=True):
                if mine is not None and exact is not None:
                    assert (mine - exact).norm() < 1e-5 * exact.norm()
    finally:
        torch.set_num_threads(threads)
    assert len(blocks) == 1
