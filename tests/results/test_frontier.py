import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bilinear.results.frontier import frontier, wilson_interval


def test_wilson_interval_known_values() -> None:
    """The 95 % interval of 8 in 10, as published tables have it."""
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(1, 1) == pytest.approx((0.2065, 1.0), abs=1e-4)


@given(st.integers(1, 5000), st.floats(0, 1))
def test_wilson_interval_solves_its_equation(trials: int, share: float) -> None:
    """At each inner bound q: |share − q| = z √(q(1−q)/n)."""
    successes = round(share * trials)
    for q in wilson_interval(successes, trials):
        if 0 < q < 1:
            half = 1.959963984540054 * (q * (1 - q) / trials) ** 0.5
            assert abs(successes / trials - q) == pytest.approx(half, rel=1e-6)


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (-1, 3), (4, 3)])
def test_wilson_interval_refuses(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(successes, trials)


def test_frontier_of_a_small_table() -> None:
    rows = [(4, 0.9, False, None), (4, 1.0, True, 70), (5, 0.8, False, None), (6, 1.0, True, 10)]
    rows += [(4, 1.0, True, 30), (7, 1.0, True, 20)]
    names = ["d_hidden", "full_acc", "perfect", "first_perfect_step"]
    found = frontier(pd.DataFrame(rows, columns=names))
    assert (found["models"], found["perfect"]) == (6, 4)
    assert found["smallest_perfect_width"] == 4
    assert found["all_perfect_from_width"] == 6
    four = found["widths"][0]
    assert (four["d_hidden"], four["models"], four["perfect"], four["median_steps"]) == (
        4,
        3,
        2,
        50,
    )
    assert (four["wilson_low"], four["wilson_high"]) == wilson_interval(2, 3)
    assert found["widths"][1]["median_steps"] is None
