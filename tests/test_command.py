"""The command and its folder, end to end."""

import filecmp
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import bilinear
from bilinear.cli.commands import main
from bilinear.cli.options import build_parser, study_from
from bilinear.errors import ConfigError, ResultsError
from bilinear.experiment.task import modular_addition
from bilinear.reading.interactions import interaction_matrices
from bilinear.reference import Model, ModelConfig
from bilinear.results.frontier import frontier

ROOT = Path(__file__).parents[1]
QUICK = ["--fused", "--p", "7", "--widths", "8..5", "--seeds", "2", "--steps", "100"]


def run(tmp_path: Path, *more: str, out: str = "run") -> Path:
    assert main([*QUICK, "--out", str(tmp_path / out), *more]) == 0
    return tmp_path / out


def same_folders(a: Path, b: Path) -> bool:
    """Compare all files but `sessions.json`, which differs between runs."""
    names = sorted(str(f.relative_to(a)) for f in a.rglob("*") if f.is_file())
    assert names == sorted(str(f.relative_to(b)) for f in b.rglob("*") if f.is_file())
    names.remove("sessions.json")
    return filecmp.cmpfiles(a, b, names, shallow=False)[0] == names


def test_a_sweep_and_what_can_be_read_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run(tmp_path, "--json")
    printed, people = capsys.readouterr()
    assert re.match(r"backend (compiled|torch)-cpu: .*float32|backend torch-cpu", people)
    results = bilinear.load_results(path)
    assert results.complete
    assert len(results.table) == len(results.models) == 8
    said = json.loads(printed)
    assert said["widths"] == frontier(results.table)["widths"]
    assert json.loads((path / "summary.json").read_text())["widths"] == said["widths"]
    x, label = modular_addition(7).tensors
    for (d, seed), state in results.models.items():
        model = Model(ModelConfig(7, d))
        model.load_state_dict(state)
        with torch.no_grad():
            logits = model(x)
        row = results.table.query(f"d_hidden == {d} and seed == {seed}").iloc[0]
        assert (logits.argmax(1) == label).float().mean().item() == pytest.approx(row["full_acc"])
        right = logits.gather(1, label[:, None])[:, 0]
        margin = (right - logits.scatter(1, label[:, None], -torch.inf).amax(1)).min()
        assert margin.item() == pytest.approx(row["min_margin"], rel=1e-3, abs=1e-4)
        q = results.interactions[d, seed]
        assert q.shape == (2, 14, 14)  # remainders 0 and 5
        torch.testing.assert_close(q, interaction_matrices(model, output=(0, 5)))
        quadratic = torch.einsum("ni,cij,nj->nc", x, q, x)
        torch.testing.assert_close(quadratic, logits[:, [0, 5]], rtol=1e-4, atol=1e-4)
        history = results.histories[d, seed]
        assert history["step"].iloc[-1] == row["steps"]
        assert history["full_acc"].iloc[-1] == row["full_acc"]
    for name in ("accuracy.png", "interactions.png"):
        assert (path / name).read_bytes().startswith(b"\x89PNG")


def test_same_command_same_bits(tmp_path: Path) -> None:
    assert same_folders(run(tmp_path), run(tmp_path, out="again"))


def test_other_seeds_other_bits(tmp_path: Path) -> None:
    results = bilinear.load_results(run(tmp_path))
    a, b = results.models[8, 0], results.models[8, 1]
    assert not torch.equal(a["bi_linear.weight"], b["bi_linear.weight"])


def test_a_second_run_trains_nothing_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run(tmp_path)
    before = {f: f.stat().st_mtime_ns for f in (path / "models").iterdir()}
    capsys.readouterr()
    assert main([*QUICK, "--out", str(path), "--resume"]) == 0
    assert "8 models are there from before" in capsys.readouterr().out
    assert {f: f.stat().st_mtime_ns for f in (path / "models").iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize("models_at_kill", [0, 1, 5])
def test_killed_and_started_again(tmp_path: Path, models_at_kill: int) -> None:
    settings = ["--p", "23", "--widths", "12..5", "--steps", "1500", "--hold", "150"]
    command = [sys.executable, "sweep.py", "--fused", *settings, "--out"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        [*command, str(killed)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while (
        len(list((killed / "models").glob("d*.safetensors"))) < models_at_kill
        or not (killed / "config.json").exists()
    ):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "table.parquet").exists()
    (killed / "models").mkdir(exist_ok=True)
    (killed / "models" / "d012-s0000.safetensors.partial").write_bytes(b"half")
    for path in (killed, whole):
        subprocess.run([*command, str(path)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert same_folders(killed, whole)


def test_unfinished_folder_can_be_read(tmp_path: Path) -> None:
    path = run(tmp_path)
    (path / "models" / "d008-s0000.safetensors").unlink()
    (path / "table.parquet").unlink()
    results = bilinear.load_results(path)
    assert not results.complete
    assert len(results.table) == 7
    assert "7 of 8" in repr(results)
    with pytest.raises(KeyError, match="not in"):
        results.models[8, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--p", "1"], "--p: expected an integer from 2 to 16,384, got 1"),
        (["--widths", "0"], "widths: expected an integer from 1 to 16,384, got 0"),
        (["--widths", "8,x"], "such as 64,32 or 1..64, got '8,x'"),
        (["--train-frac", "1"], "--train-frac: expected 0 < fraction < 1, got 1.0"),
        (["--train-frac", "0"], "--train-frac"),
        (["--device", "tpu"], "device: expected auto, cpu, cuda, got 'tpu'"),
        (["--batch-size", "0"], "--batch-size: expected full or a number"),
        (["--steps", "x"], "argument --steps: expected an integer of at most 19 digits, got 'x'"),
        (["--steps", "5", "--epochs", "5"], "--steps and --epochs"),
        (["--precision", "tf32", "--device", "cpu"], "precision: a CPU trains in true float32"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--seeds", "3,3"], "seeds: expected each once"),
        (["--lr-end", "0.1", "--schedule", "constant"], "constant one cannot go"),
    ],
)
def test_bad_input_is_one_line_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    out = tmp_path / "run"
    assert main([*QUICK, "--out", str(out), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_no_cuda_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert main([*QUICK, "--out", str(tmp_path / "run"), "--device", "cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_reference_needs_the_notebooks_protocol(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--batch-size", "full"]) == 2
    assert "add --fused for full batch" in capsys.readouterr().err


def test_folder_of_another_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run(tmp_path)
    before = (path / "config.json").read_bytes()
    assert main([*QUICK, "--out", str(path), "--lr", "0.07"]) == 2
    error = capsys.readouterr().err
    assert "belongs to another config (lr:" in error
    assert "0.07" in error
    assert (path / "config.json").read_bytes() == before


def test_folder_that_holds_something_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "diary.txt").write_text("dear diary")
    assert main([*QUICK, "--out", str(tmp_path)]) == 2
    assert "'diary.txt'" in capsys.readouterr().err
    assert [f.name for f in tmp_path.iterdir()] == ["diary.txt"]


def test_damaged_model_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run(tmp_path)
    model = path / "models" / "d006-s0001.safetensors"
    model.write_bytes(model.read_bytes()[:50])
    with pytest.raises(ResultsError, match=r"d006-s0001\.safetensors: damaged"):
        bilinear.load_results(path).models[6, 1]
    (path / "table.parquet").unlink()
    capsys.readouterr()
    assert main([*QUICK, "--out", str(path)]) == 0
    said = capsys.readouterr().out
    assert "mended: models/d006-s0001.safetensors: damaged (its header cannot be read)" in said
    assert "7 models are there from before" in said
    assert (path / "set-aside" / "models" / "d006-s0001.safetensors").stat().st_size == 50
    shutil.rmtree(path / "set-aside")
    assert same_folders(path, run(tmp_path, out="whole"))


def test_damaged_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run(tmp_path)
    (path / "config.json").write_text("{")
    assert main(["show", str(path)]) == 2
    assert "config.json: damaged" in capsys.readouterr().err


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="expected a folder"):
        bilinear.load_results(tmp_path / "nowhere")
    with pytest.raises(ResultsError, match=r"no config\.json"):
        bilinear.load_results(tmp_path)


def test_too_little_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert main([*QUICK, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert re.search(r"expected 0\.0[\d]* MB of space for .*, got 0\.001", said)
    assert not (tmp_path / "run").exists()


def test_disk_fills_up_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files already written stay whole, and a later run with space ends with the same bits."""
    real, calls = os.fsync, []

    def full(fd: int) -> None:
        calls.append(fd)
        if len(calls) > 7:  # 4 are of config, environment, digests and sessions
            raise OSError(28, "No space left on device")
        real(fd)

    path = tmp_path / "run"
    monkeypatch.setattr("os.fsync", full)
    assert main([*QUICK, "--out", str(path)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not list(path.rglob("*.partial"))
    assert len(bilinear.load_results(path).jobs) == 3
    monkeypatch.undo()
    assert main([*QUICK, "--out", str(path)]) == 0
    assert same_folders(path, run(tmp_path, out="whole"))


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--fused", "--dry-run", "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    flop = sum(6000 * 6 * 3072 * 64 * d + 600 * 2 * 4096 * 64 * d for d in range(1, 65))
    assert f"{flop / 1e12:,.2f}·10¹²" in printed
    assert "64: widths 1…64, seeds 0" in printed
    assert not (tmp_path / "run").exists()


def test_resume_finds_the_last_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*QUICK, "--resume"]) == 2
    assert "no folder under runs" in capsys.readouterr().err
    assert main(QUICK) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    (folder / "models" / "d007-s0000.safetensors").unlink()
    assert main([*QUICK, "--resume"]) == 0
    assert "7 models are there from before" in capsys.readouterr().out
    assert [folder] == list((tmp_path / "runs").iterdir())


def test_reference_sweep(tmp_path: Path) -> None:
    arguments = ["--p", "5", "--widths", "6,2", "--epochs", "3", "--batch-size", "4"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    results = bilinear.load_results(tmp_path / "run")
    assert results.environment["backend"] == "reference"
    assert results.table["steps"].tolist() == [12, 12]
    assert len(results.histories[6, 0]) == 3


def test_notebook_preset_is_the_notebooks_protocol() -> None:
    (config,) = study_from(build_parser().parse_args(["--fused", "--preset", "notebook"]))
    assert (config.batch_size, config.steps, config.eval_every) == (64, 600 * 48, 48)
    assert (config.lr.start, config.lr.end) == (3e-3, 3e-3)
    assert (config.weight_decay.start, config.weight_decay.end) == (3e-4, 3e-4)
    assert (config.goal, config.hold, config.train_frac) == ("val", 1, 0.75)
    assert config.widths == tuple(range(64, 0, -1))


def test_show_prints_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run(tmp_path)
    answer = capsys.readouterr().out.splitlines()[-1]
    assert main(["show", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == answer


def test_export_for_the_notebook(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, file = run(tmp_path), tmp_path / "results.pkl"
    export = ["export", str(path), "--format", "notebook", "--file", str(file)]
    assert main([*export, "--seed", "1"]) == 0
    content = pickle.loads(file.read_bytes())
    assert set(content) == {"val_accs", "models", "int_mats", "remainders"}
    assert list(content["models"]) == [8, 7, 6, 5]
    results = bilinear.load_results(path)
    assert torch.equal(content["int_mats"][7], results.interactions[7, 1])
    Model(ModelConfig(7, 5)).load_state_dict(content["models"][5])
    assert main([*export, "--seed", "1"]) == 2
    assert "which exists" in capsys.readouterr().err
    assert main([*export[:-1], str(tmp_path / "b.pkl"), "--seed", "9"]) == 2
    assert "--seed" in capsys.readouterr().err


def test_errors_are_value_errors() -> None:
    assert issubclass(ConfigError, ValueError)
    assert issubclass(ResultsError, ValueError)


def test_a_narrowed_dry_run_says_how_and_how_much(capsys: pytest.CaptureFixture[str]) -> None:
    command = "--fused --narrow --drop norm --tries 2 --redraws 3 --p 7 --widths 4,3 --steps 10"
    assert main([*command.split(), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "less a unit, the one of the least norm; up to 2 ways, 3 units" in out
    # 4: 10; 3: 100 gentle ones, two ways and three new units.
    assert "at most 10 each start, 160 in all" in out
    assert main(["--fused", "--drop", "norm", "--dry-run"]) == 2
    assert "--drop: expected with --narrow alone" in capsys.readouterr().err
    assert main(["--narrow", "--dry-run"]) == 2
    assert "the reference loop trains each width by itself" in capsys.readouterr().err
