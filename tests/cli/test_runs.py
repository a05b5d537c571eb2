"""Folders under runs/: their list, and the last one where a command names none."""

import json
import os
from pathlib import Path

import pytest

import bilinear
from bilinear.cli.commands import main
from bilinear.cli.runs import folders, last_run
from bilinear.errors import ConfigError

QUICK = ["--fused", "--widths", "6,5", "--steps", "40", "--p"]


def test_the_last_run_is_the_one_begun_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="results: expected a folder, and there is none under"):
        last_run()
    assert main(["runs"]) == 2
    assert main(["show"]) == 2
    for p in ("7", "5,7", "5"):
        assert main([*QUICK, p]) == 0
    (tmp_path / "runs" / "notes").mkdir()
    found = folders()
    for age, path in enumerate(found):  # their times may be equal by a coarse clock
        begun = path / ("study.json" if "study" in path.name else "config.json")
        os.utime(begun, (1e9 - age, 1e9 - age))
    assert last_run() == found[0] == folders()[0]
    assert len(found) == 3
    (found[0] / "models" / "d005-s0000.safetensors").unlink()
    capsys.readouterr()
    assert main(["runs"]) == 0
    heading, last, middle, first = capsys.readouterr().out.splitlines()
    assert heading.split() == ["folder", "task", "models", "smallest", "perfect"]
    assert "(a + b) mod 5" in last
    assert "1 of 2" in last
    assert "study of 2 cells, P 5, 7" in middle
    assert "(a + b) mod 7" in first
    assert main(["show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["p"] == 5
    assert main(["view", "--no-open"]) == 0
    assert (found[0] / "view.html").exists()


def test_resume_of_a_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main([*QUICK, "7", "--out", str(out)]) == 0
    before = (out / "models" / "d005-s0000.safetensors").read_bytes()
    (out / "models" / "d005-s0000.safetensors").unlink()
    capsys.readouterr()
    assert main(["--resume", str(out)]) == 0
    assert "1 models are there from before" in capsys.readouterr().out
    assert (out / "models" / "d005-s0000.safetensors").read_bytes() == before
    sessions = json.loads((out / "sessions.json").read_text())
    assert len(sessions) == 2
    assert all(s["versions"]["bilinear"] == bilinear.__version__ for s in sessions)
    assert all(s["command"] and s["date"].endswith("+00:00") and s["device"] for s in sessions)
    assert main(["--resume", str(out), "--lr", "0.2", *QUICK, "7"]) == 2
    assert "belongs to another config (lr:" in capsys.readouterr().err
    for option, default in (("--p", "64"), ("--seeds", "1"), ("--precision", "highest")):
        assert main(["--resume", str(out), "--fused", option, default]) == 2  # given, so compared
        assert "belongs to another config" in capsys.readouterr().err
    assert main(["--resume", str(out), "--out", str(out)]) == 2
    assert "--resume and --out: expected one folder" in capsys.readouterr().err


def test_a_place_that_is_not_there_is_said_by_its_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    assert main(["--resume", str(gone)]) == 2
    assert f"--resume: expected a results folder, got '{gone}'" in capsys.readouterr().err
    for command in (f"view {tmp_path} --out", f"export {tmp_path} --format notebook --file"):
        option = command.rpartition(" ")[2]
        assert main([*command.split(), str(gone / "file")]) == 2
        error = capsys.readouterr().err
        assert f"{option}: expected a file in a folder that is there, got '{gone}/file'" in error


def test_quiet_says_nothing_and_a_plan_is_machine_readable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*QUICK, "7", "--out", str(tmp_path / "run"), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main([*QUICK, "7", "--out", "nowhere", "--dry-run", "--json"]) == 0
    out, err = capsys.readouterr()
    plan = json.loads(out)
    assert (plan["models"], plan["steps_at_most"]) == (2, 80)
    assert [row["devices"] for row in plan["times"]] == [1, 8, 64]
    assert plan["times"][0]["at_most_seconds"] > 0
    assert "(a + b) mod 7" in err


def test_a_file_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.md").write_text("mine")
    assert main([*QUICK, "7", "--out", str(tmp_path / "notes.md")]) == 2
    assert "--out: expected a folder" in capsys.readouterr().err
    assert main([*QUICK, "7", "--lr", "-1"]) == 2
    assert "--lr: expected 0 or a number from 1e-18 to 1e+18, got -1.0" in capsys.readouterr().err
