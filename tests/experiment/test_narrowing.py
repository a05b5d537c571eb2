"""The settings of a narrowed sweep: a config's steps, its JSON, and errors."""

import json
from pathlib import Path
from typing import Any

import pytest

from bilinear.errors import ConfigError, ResultsError
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.narrowing import Narrowing
from bilinear.experiment.schedule import Phase, Schedule
from bilinear.experiment.study import Study
from bilinear.results.open import load_results

NARROW = Narrowing(
    widest_steps=40, tries=3, redraws=2, last_up_to=2, last_tries=2,
    last=Phase(70, Schedule(0.1, 0.1), Schedule(0, 0)),
)  # fmt: skip
CONFIG = SweepConfig(p=8, widths=(8, 6, 5, 2, 1), steps=50, hold=3, remainders=(), narrow=NARROW)


def test_each_width_starts_from_the_next_wider() -> None:
    assert [CONFIG.parent(d) for d in CONFIG.widths] == [None, 8, 6, 5, 2]
    alone = SweepConfig(p=8, widths=CONFIG.widths, remainders=())
    assert [alone.parent(d) for d in alone.widths] == [None] * 5


def test_the_most_steps() -> None:
    # `settling` is 3 evaluations, then come 3 tries and, above width 2, 2 redraws. Width 2 may end
    # with the last phase twice; width 1 has 2 ways and no last phase.
    assert [CONFIG.most_steps(d) for d in CONFIG.widths] == [40, 280, 280, 320, 130]


def test_json_carries_it_and_says_nothing_where_there_is_none() -> None:
    assert SweepConfig.from_json(CONFIG.to_json()) == CONFIG
    alone = SweepConfig(p=8, remainders=(), widths=(3,))
    assert "narrow" not in json.loads(alone.to_json())
    assert SweepConfig.from_json(alone.to_json()) == alone
    broken = CONFIG.to_json().replace('"drop": "circuit"', '"drop": [2]')
    with pytest.raises(ConfigError, match="not a sweep's config"):
        SweepConfig.from_json(broken)


@pytest.mark.parametrize("kind", ["config", "study"])
def test_a_folder_of_another_version_says_so(kind: str, tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text('{"backend": "compiled-cpu"}')
    json_of = CONFIG.to_json() if kind == "config" else Study((CONFIG,)).to_json()
    (tmp_path / f"{kind}.json").write_text(json_of.replace('"redraws"', '"again"'))
    with pytest.raises(ResultsError) as error:
        load_results(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/{kind}.json: its models were narrowed by another version of bilinear (this "
        "one differs in again, redraws): read it with that version, or train them again into a "
        "new folder"
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"drop": "first"}, "drop: expected circuit, loss, norm, random, got 'first'"),
        ({"tries": 0}, "tries: expected an integer ≥ 1, got 0"),
        ({"redraws": -1}, "redraws: expected an integer ≥ 0, got -1"),
        ({"last": 0.1}, "last: expected a Phase, got 0.1"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Narrowing(**wrong)
    assert str(error.value) == message


def test_wrong_phases_are_named() -> None:
    with pytest.raises(ConfigError, match="steps: expected an integer ≥ 1, got 0"):
        Phase(0, Schedule(0.1, 0.1), Schedule(0, 0))
    with pytest.raises(ConfigError, match=r"lr: expected a Schedule, got 0\.1"):
        Phase(3, 0.1, Schedule(0, 0))  # type: ignore[arg-type]
