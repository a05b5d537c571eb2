"""The estimate of how long training will take."""

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bilinear.cli.durations import duration
from bilinear.cli.options import build_parser, study_from
from bilinear.cli.report import comparison, print_forecast
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.cost import work_of_step
from bilinear.experiment.narrowing import Narrowing
from bilinear.experiment.schedule import Schedule
from bilinear.training.choose import choose_for
from bilinear.training.forecast.calibration import Calibration
from bilinear.training.forecast.estimate import Times, estimate
from bilinear.training.forecast.expected_steps import expected_steps

RATE = 1e9  # FLOP a second, of any step: the points lie on a line through the origin
POINTS = ((1e6, 1e6 / RATE), (1e9, 1e9 / RATE))


def rate(at_once: int = 1, devices: int = 1) -> Calibration:
    return Calibration(at_once, "an abacus", POINTS, "measured now", devices)


def in_a_queue(seconds: list[float], lanes: int) -> float:
    """When the last model ends, each begun in this order when a lane is free."""
    ends = [0.0] * lanes
    for one in seconds:
        heapq.heapreplace(ends, ends[0] + one)
    return max(ends)


models = st.lists(st.integers(1, 80), min_size=1, max_size=40)
lanes = st.tuples(st.integers(1, 4), st.integers(1, 20))


@given(models, lanes, st.randoms())
def test_at_most_bounds_a_queue_in_any_order(
    widths: list[int], lanes: tuple[int, int], rng
) -> None:
    at_once, devices = lanes
    config = SweepConfig()
    found = estimate(rate(at_once), [config], [widths])
    seconds = [config.steps * work_of_step(config, d) / RATE for d in widths]
    rng.shuffle(seconds)
    taken = in_a_queue(seconds, at_once * devices)
    at_most = found.times(at_once * devices).at_most
    assert taken <= at_most * (1 + 1e-9)
    assert at_most < 2 * taken * (1 + 1e-9)
    assert found.most.longest == pytest.approx(max(seconds))
    assert found.most.total == pytest.approx(sum(seconds))


@given(models, st.integers(1, 80))
def test_about_is_less_and_never_below_the_longest(widths: list[int], lanes: int) -> None:
    config, stops = SweepConfig(), 24
    found = estimate(rate(), [config], [[*widths, stops]])
    (about, at_most), (more_about, more_at_most) = found.times(lanes), found.times(lanes + 1)
    assert about is not None
    assert more_about is not None
    seconds = [expected_steps(config, d) * work_of_step(config, d) / RATE for d in [*widths, stops]]
    assert max(seconds) * (1 - 1e-9) <= more_about <= about <= at_most * (1 + 1e-9)
    assert about == pytest.approx(max(sum(seconds) / lanes, max(seconds)))
    assert more_at_most <= at_most
    assert found.times(10**9).at_most == pytest.approx(found.most.longest)


def test_all_models_of_all_cells() -> None:
    cells = [
        SweepConfig(widths=(3, 2), seeds=(0, 5, 6)),
        SweepConfig(p=59, widths=(4,), remainders=()),
    ]
    assert estimate(rate(), cells).times(2) == estimate(rate(), cells, [[3, 2] * 3, [4]]).times(2)
    assert estimate(rate(), cells[:1]).times(2) != estimate(rate(), cells).times(2)


def test_nothing_to_do_takes_no_time() -> None:
    assert estimate(rate(), [SweepConfig()], [[]]).times(1) == (None, 0)


@pytest.mark.parametrize(
    "other",
    [
        SweepConfig(steps=100),
        SweepConfig(lr=Schedule(0.01, 0.01, "constant")),
        SweepConfig(train_frac=0.5),
        SweepConfig(p=97, widths=(9,)),
        SweepConfig(batch_size=64),
        SweepConfig(goal="val"),
        SweepConfig(hold=20),
    ],
)
def test_of_another_recipe_nothing_is_known(other: SweepConfig) -> None:
    assert expected_steps(SweepConfig(), 16) < 1000
    assert expected_steps(other, 16) == other.steps
    about, at_most = estimate(rate(), [other], [[9]]).times(1)
    assert about is None
    assert at_most == pytest.approx(other.steps * work_of_step(other, 9) / RATE)


@pytest.mark.parametrize("p", [64, 59])
def test_models_stop_sooner_the_wider_they_are(p: int) -> None:
    config = SweepConfig(p=p, widths=(1,), remainders=())
    steps = [expected_steps(config, d) for d in range(1, 65)]
    assert steps[:6] == [config.steps] * 6
    assert all(0 < s <= config.steps for s in steps)
    assert steps[31] < steps[17] < steps[15] < steps[12] <= config.steps


def test_odd_moduli_take_longer() -> None:
    odd, even = (SweepConfig(p=p, widths=(1,), remainders=()) for p in (61, 62))
    longer = [expected_steps(odd, d) - expected_steps(even, d) for d in range(12, 30)]
    assert sum(longer) > 10_000


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0123, "0.012 s"),
        (9.94, "9.9 s"),
        (14.2, "14 s"),
        (119, "119 s"),
        (121, "2 min"),
        (7300, "2 h"),
        (172_900, "2 days"),
        (864e5, "1,000 days"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_comparisons() -> None:
    known = Times(about=20, at_most=105)
    assert comparison(known, 30) == "estimated about 20 s (at most 105 s), took 30 s: 50% more"
    assert comparison(known, 16) == "estimated about 20 s (at most 105 s), took 16 s: 20% less"
    assert comparison(Times(None, 200), 50) == "estimated at most 3 min, took 50 s: 25% of it"


def forecast(*arguments: str, calibration: Calibration | None) -> list[str]:
    study = study_from(build_parser().parse_args(["--fused", *arguments]))
    console = Console(width=100, highlight=False)
    with console.capture() as said:
        print_forecast(console, study, "out", choose_for(study.cells, fused=True), calibration)
    return said.get().splitlines()


def rows(lines: list[str]) -> dict[int, list[str]]:
    at = next(i for i, line in enumerate(lines) if line.split()[:2] == ["devices", "about"])
    table = [line.rstrip() for line in lines[at + 1 :] if line.split()[0].isdigit()]
    return {int(line.split()[0]): line.split(maxsplit=1)[1].split("  ") for line in table}


def cells_of(row: list[str]) -> list[str]:
    return [text.strip() for text in row if text.strip()]


def test_the_forecast_of_a_sweep() -> None:
    lines = forecast(calibration=rate(2))
    text = "\n".join(lines)
    assert "15.38·10¹²" in text
    assert "2,891 kB a model in training" in text
    assert "25.8 MB at most, in out" in text
    assert "2 models at once" in text
    assert "an abacus; rate measured now" in text
    found = estimate(rate(2), [SweepConfig()])
    assert {n: cells_of(row) for n, row in rows(lines).items()} == {
        n: [duration(seconds or 0) for seconds in found.times(2 * n)] for n in (1, 8, 64)
    }
    assert (found.times(2).at_most * 2 - found.most.longest) * RATE == pytest.approx(
        sum(6000 * work_of_step(SweepConfig(), d) for d in range(1, 65)), rel=0.01
    )


def test_the_forecast_of_a_study_on_a_cluster() -> None:
    study = ("--p", "59,64", "--train-frac", "0.5,0.75", "--seeds", "2")
    lines = forecast(*study, calibration=rate(1, devices=12))
    text = "\n".join(lines)
    assert "P 59, 64; share of pairs trained on 0.5, 0.75" in text
    assert f"4 cells, {(59 + 64) * 4} models" in text
    cells = [
        SweepConfig(p=p, widths=tuple(range(1, p + 1)), train_frac=f, seeds=(0, 1), remainders=())
        for p in (59, 64)
        for f in (0.5, 0.75)
    ]
    found = estimate(rate(), cells)
    shown = {n: cells_of(row) for n, row in rows(lines).items()}
    assert list(shown) == [1, 8, 12, 64]
    for n, row in shown.items():
        assert row[:2] == [duration(seconds or 0) for seconds in found.times(n)]
    assert shown[12][2] == "all there are now"
    assert "one model at a time" in text


def test_the_forecast_without_a_rate_or_a_known_recipe() -> None:
    assert "time  unknown" in forecast(calibration=None)[-1]
    lines = forecast("--steps", "50", calibration=rate())
    assert cells_of(rows(lines)[8])[0] == "—"
    assert "no runs like this were counted" in lines[-1]


def test_narrowed_widths_have_steps_of_their_own() -> None:
    config = SweepConfig(narrow=Narrowing())
    assert expected_steps(config, 64) == 2_000 < config.steps
    assert expected_steps(config, 40) == 100
    assert expected_steps(config, 2) > 6 * expected_steps(config, 3)
    assert all(expected_steps(config, d) <= config.most_steps(d) for d in config.widths)
    for other in (
        SweepConfig(p=59, widths=(20, 9), remainders=(), narrow=Narrowing()),
        SweepConfig(widths=(20, 9), narrow=Narrowing(drop="random")),
    ):
        assert expected_steps(other, 9) == other.most_steps(9)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_plans_times_keep_their_headings_on_a_narrow_terminal(width: int) -> None:
    study = study_from(build_parser().parse_args(["--fused"]))
    console = Console(width=width, highlight=False)
    with console.capture() as said:
        print_forecast(console, study, "out", choose_for(study.cells, fused=True), rate(2))
    (heading,) = (line for line in said.get().splitlines() if line.split()[:1] == ["devices"])
    assert heading.split() == ["devices", "about", "at", "most"]
    assert len(heading) <= width
