"""What is left of a sweep, in time and in share of the work."""

import pytest

from bilinear.cli.work import Work
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.cost import work_of_step
from bilinear.training.forecast.calibration import Calibration, Curve
from bilinear.training.forecast.expected_steps import expected_steps

DEFAULT = SweepConfig(widths=(64, 32, 4))  # the recipe whose models were seen
OTHER = SweepConfig(p=11, widths=(8, 4), steps=100, remainders=())
SLOW = Calibration(2, "", {0: [Curve(64, ((1e6, 1e-3), (1e9, 1.0)))]}, "")


def test_before_anything_a_known_rate_says_it() -> None:
    unit = {d: SLOW.step_seconds(DEFAULT, d) for d in DEFAULT.widths}
    left = Work([DEFAULT], SLOW).left([], 0.0)
    assert left.about == pytest.approx(sum(unit[d] * expected_steps(DEFAULT, d) for d in unit) / 2)
    assert left.at_most == pytest.approx(sum(unit.values()) * 6000 / 2)
    assert left.about < left.at_most / 2
    assert Work([DEFAULT], None).left([], 0.0) is None


def test_a_recipe_that_nobody_has_seen_has_a_bound_alone() -> None:
    work = Work([OTHER], None)
    work.end(0, 8, 100, here=True)
    left = work.left([(0, 4, 50)], 10.0)
    assert left.about is None
    done = 100 * work_of_step(OTHER, 8) + 50 * work_of_step(OTHER, 4)
    assert left.at_most == pytest.approx(50 * work_of_step(OTHER, 4) / done * 10)


def test_the_last_model_alone_takes_its_own_time() -> None:
    """Of two lanes one is idle: the rate that was measured on both is halved."""
    work = Work([DEFAULT], None)
    work.left([(0, 64, 100), (0, 32, 100)], 5.0)
    work.end(0, 64, 200, here=True)
    work.end(0, 32, 200, here=True)
    left = work.left([(0, 4, 1000)], 10.0)
    done = 200 * (work_of_step(DEFAULT, 64) + work_of_step(DEFAULT, 32))
    done += 1000 * work_of_step(DEFAULT, 4)
    assert left.at_most == pytest.approx(5000 * work_of_step(DEFAULT, 4) / done * 10)
    assert left.about == left.at_most  # twice as long, but never above the bound


def test_the_share_moves_while_narrow_models_train_and_never_falls() -> None:
    work = Work([DEFAULT], None)
    shares = [work.share([(0, 4, step)]) for step in (0, 1000, 3000, 5999)]
    assert shares[0] == 0
    assert shares == sorted(set(shares))
    before = work.share([(0, 4, 5999), (0, 64, 10)])
    assert work.share([(0, 4, 5999), (0, 64, 4000)]) >= before  # it outlives what was expected
    for d, steps in ((64, 6000), (32, 300), (4, 6000)):
        work.end(0, d, steps, here=d != 32)
    assert work.share([]) == pytest.approx(1)
    assert work.left([], 60.0).at_most == pytest.approx(0)
