"""Estimates of the rest of a sweep: its time, and the share of the work that is done."""

import pytest

from bilinear.cli.remaining import Remaining
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.cost import work_of_step
from bilinear.training.forecast.calibration import Calibration
from bilinear.training.forecast.expected_steps import expected_steps

DEFAULT = SweepConfig(widths=(64, 32, 4))  # settings whose usual number of steps is known
OTHER = SweepConfig(p=11, widths=(8, 4), steps=100, remainders=())
SLOW = Calibration(2, "", ((1e6, 1e-3), (1e9, 1.0)), "")


def test_before_the_first_step_the_rate_alone_gives_the_time() -> None:
    unit = {d: SLOW.step_seconds(DEFAULT, d) for d in DEFAULT.widths}
    left = Remaining([DEFAULT], SLOW).left([], 0.0)
    each = [unit[d] * expected_steps(DEFAULT, d) for d in unit]
    assert left.about == pytest.approx(max(sum(each) / 2, *each))
    most = [seconds * 6000 for seconds in unit.values()]
    assert left.at_most == pytest.approx((sum(most) - max(most)) / 2 + max(most))
    assert left.about < left.at_most / 2
    assert Remaining([DEFAULT], None).left([], 0.0) is None


def test_settings_of_unknown_steps_have_only_an_upper_bound() -> None:
    remaining = Remaining([OTHER], None)
    remaining.end(0, 8, 100, here=True)
    left = remaining.left([(0, 4, 50)], 10.0)
    assert left.about is None
    done = 100 * work_of_step(OTHER, 8) + 50 * work_of_step(OTHER, 4)
    assert left.at_most == pytest.approx(50 * work_of_step(OTHER, 4) / done * 10)


def test_the_last_model_alone_takes_its_own_time() -> None:
    """One of two lanes is idle, so the rate measured on both is halved."""
    remaining = Remaining([DEFAULT], None)
    remaining.left([(0, 64, 100), (0, 32, 100)], 5.0)
    remaining.end(0, 64, 200, here=True)
    remaining.end(0, 32, 200, here=True)
    left = remaining.left([(0, 4, 1000)], 10.0)
    done = 200 * (work_of_step(DEFAULT, 64) + work_of_step(DEFAULT, 32))
    done += 1000 * work_of_step(DEFAULT, 4)
    assert left.at_most == pytest.approx(2 * 5000 * work_of_step(DEFAULT, 4) / done * 10)
    assert left.about is None  # it is not known to stop before its last step


def test_the_share_moves_while_narrow_models_train_and_never_falls() -> None:
    remaining = Remaining([DEFAULT], None)
    shares = [remaining.share([(0, 4, step)]) for step in (0, 1000, 3000, 5999)]
    assert shares[0] == 0
    assert shares == sorted(set(shares))
    before = remaining.share([(0, 4, 5999), (0, 64, 10)])
    assert (
        remaining.share([(0, 4, 5999), (0, 64, 4000)]) >= before
    )  # width 4 takes more steps than expected
    for d, steps in ((64, 6000), (32, 300), (4, 6000)):
        remaining.end(0, d, steps, here=d != 32)
    assert remaining.share([]) == pytest.approx(1)
    assert remaining.left([], 60.0).at_most == pytest.approx(0)
