import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bilinear.kernels import grid_cpu
from bilinear.kernels.shuffle import shuffled

needs_compiled = pytest.mark.skipif(
    grid_cpu.unavailable_because() is not None, reason=str(grid_cpu.unavailable_because())
)


@given(st.integers(1, 5000), st.integers(0, 2**64 - 1), st.integers(0, 2**20))
def test_an_epoch_holds_every_index_once(n: int, key: int, epoch: int) -> None:
    assert np.array_equal(np.sort(shuffled(n, key, epoch)), np.arange(n))


def test_positions_are_spread_evenly() -> None:
    """Over many epochs an index lands in each quarter of the order a quarter of the time (±5 σ)."""
    n, epochs = 96, 400
    quarters = np.zeros((n, 4))
    for epoch in range(epochs):
        quarters[shuffled(n, 7, epoch), np.arange(n) * 4 // n] += 1
    sigma = np.sqrt(epochs * 0.25 * 0.75)
    assert np.abs(quarters - epochs / 4).max() < 5 * sigma
    assert np.abs(quarters - epochs / 4).mean() > 0.3 * sigma  # and it does vary


@needs_compiled
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1), st.integers(0, 2**40))
def test_compiled_and_python_orders_agree(n: int, key: int, epoch: int) -> None:
    order = shuffled(n, key, epoch)
    for index in {0, n // 3, n - 1}:
        assert grid_cpu.shuffled(index, n, key, epoch) == order[index]
