"""A study on a Ray cluster of two nodes: deaths, interruption, other versions, bad addresses."""

import filecmp
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bilinear
from bilinear.cli import report
from bilinear.cli.commands import main
from bilinear.errors import ConfigError, EngineError
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.record import Finished, Job
from bilinear.experiment.study import Study
from bilinear.training.backend import Work
from bilinear.training.choose import choose
from bilinear.training.engine import choose_engine
from bilinear.training.forecast.calibration import calibrate
from bilinear.training.run import run_study, run_sweep

ray = pytest.importorskip("ray", reason="needs ray")

QUICK = ["--fused", "--p", "5", "--widths", "3,2", "--steps", "20"]


def patiently(start: Callable[..., Any], **settings: Any) -> Any:
    """Start a node, again where it misses Ray's time limit.

    The limit (15 s for a node's agents) is fixed in Ray; the first start, from a cold disk beside
    other tests, can take longer.
    """
    for _ in range(3):
        try:
            return start(**settings)
        except Exception as error:  # Ray raises the bare class
            if "timed out during startup" not in str(error):
                raise
    return start(**settings)


class Nodes:
    """A head without cores and nodes of one core each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster()
        patiently(self.cluster.add_node, num_cpus=0, num_gpus=0, include_dashboard=False)
        self.address: str = self.cluster.address
        self.some: list[Any] = []
        self.wait_for(2)

    def wait_for(self, count: int) -> None:
        while len(self.some) < count:
            self.some.append(patiently(self.cluster.add_node, num_cpus=1, num_gpus=0))

    def remove_one(self) -> None:
        self.cluster.remove_node(self.some.pop())


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    nodes = Nodes()
    yield nodes
    ray.shutdown()
    nodes.cluster.shutdown()


@pytest.fixture
def two(nodes: Nodes) -> Nodes:
    nodes.wait_for(2)
    return nodes


def study(seeds: int) -> Study:
    """Models that train for some ten milliseconds each."""
    settings = {"widths": (8, 6, 4, 3, 2), "seeds": tuple(range(seeds)), "steps": 600}
    return Study(tuple(SweepConfig(p=p, remainders=(0, 2), **settings) for p in (5, 11)))


def files(path: Path) -> list[str]:
    """All files but sessions.json, which holds the times of the runs."""
    found = (f for f in path.rglob("*") if f.is_file() and f.name != "sessions.json")
    return sorted(str(f.relative_to(path)) for f in found)


def assert_same_folder(ours: Path, theirs: Path) -> None:
    assert files(ours) == files(theirs)
    _, different, unreadable = filecmp.cmpfiles(ours, theirs, files(ours), shallow=False)
    assert not different
    assert not unreadable


def training_processes() -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        try:
            if (
                process.name.isdigit()
                and b"ray::_train_chunk" in (process / "cmdline").read_bytes()
            ):
                found.append(int(process.name))
        except OSError:  # it has ended
            continue
    return found


class Trouble:
    """Kills a worker after 30 models and removes a node after 100."""

    def __init__(self, nodes: Nodes, log: pytest.LogCaptureFixture) -> None:
        self.nodes, self.log, self.ended = nodes, log, 0
        self.deaths_before: list[int] = []

    def __call__(self, index: int, event: object) -> None:
        self.ended += isinstance(event, Finished)
        deaths = len(self.log.records)
        if self.ended >= 30 and deaths == 0:
            # Kills another one if the first had just sent its last model: then no death is logged.
            for pid in training_processes()[:1]:
                os.kill(pid, signal.SIGKILL)
        if self.ended >= 100 and len(self.nodes.some) == 2:
            self.nodes.remove_one()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_deaths_leave_the_bits_of_a_local_run(
    two: Nodes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = study(seeds=22)
    assert sum(len(cell.jobs) for cell in models) >= 200
    backend = choose_engine(models.cells, engine="ray", fused=True, ray_address=two.address)
    trouble = Trouble(two, caplog)
    with caplog.at_level(logging.WARNING, "bilinear"):
        run_study(models, backend, tmp_path / "ray", trouble)
    deaths = [r.getMessage() for r in caplog.records]
    assert any("WorkerCrashed" in death for death in deaths)
    assert len(two.some) == 1
    assert trouble.ended == sum(len(cell.jobs) for cell in models)
    local = choose(models.cells[0], fused=True, device="cpu")
    run_study(models, local, tmp_path / "local")
    assert_same_folder(tmp_path / "ray", tmp_path / "local")


def test_stopped_on_ray_and_resumed_here(two: Nodes, tmp_path: Path) -> None:
    config = study(seeds=6).cells[1]
    backend = choose_engine([config], engine="ray", fused=True, ray_address=two.address)
    ended = 0

    def stop(event: object) -> None:
        nonlocal ended
        ended += isinstance(event, Finished)
        if ended == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(config, backend, tmp_path / "ray", stop)
    local = choose(config, fused=True, device="cpu")
    resumed = 0

    def count(event: object) -> None:
        nonlocal resumed
        resumed += isinstance(event, Finished)

    run_sweep(config, local, tmp_path / "ray", count)
    assert resumed == len(config.jobs) - 9
    run_sweep(config, local, tmp_path / "local")
    assert_same_folder(tmp_path / "ray", tmp_path / "local")


def test_a_chunk_that_kills_its_workers_is_given_up(
    two: Nodes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from bilinear.training import ray_cluster as engine

    config = study(seeds=1).cells[0]
    backend = engine.RayBackend([config], address=two.address)

    @ray.remote(num_returns="streaming", max_retries=0)
    def die() -> Iterator[int]:
        os._exit(1)
        yield 0

    monkeypatch.setattr(engine, "_DEATHS_IN_A_ROW", 2)
    monkeypatch.setattr(backend, "_launch", lambda chunk: die.remote())
    with pytest.raises(EngineError, match=r"died 2 times in a row of 1 model of p 5, width \d"):
        list(backend.train([Work(config, list(map(Job._make, config.jobs)))]))
    assert "a worker died" in caplog.text


def test_nodes_of_another_version_are_refused(two: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    config = study(seeds=1).cells[0]
    version = bilinear.__version__
    monkeypatch.setattr(bilinear, "__version__", "9.9")
    with pytest.raises(ConfigError, match=f"bilinear 9.9 on every node, got {version} on "):
        choose_engine([config], engine="ray", fused=True, ray_address=two.address)


def test_what_the_nodes_cannot_do_is_said(two: Nodes, capsys: pytest.CaptureFixture[str]) -> None:
    ray_options = ["--engine", "ray", "--ray-address", two.address]
    for options, message in [
        (["--precision", "high"], "a CPU trains in true float32, got 'high'"),
        (["--device", "cuda"], "no node has a GPU"),
    ]:
        assert main([*QUICK, *ray_options, *options]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_the_compiled_layer_in_an_actor(two: Nodes) -> None:
    """It runs on one thread there, and gives the bits that it gives on two threads here."""

    class Holder:
        def out(self, x: Any, *weights: Any) -> Any:
            import torch

            from bilinear.functional import bilinear_mlp

            return bilinear_mlp(*map(torch.tensor, (x, *weights))).numpy(), torch.get_num_threads()

    draw = np.random.default_rng(0).standard_normal
    tensors = [draw(size, np.float32) for size in ((1000, 64), (96, 64), (16, 48))]
    ray.init(address=two.address, ignore_reinit_error=True, log_to_driver=False)
    actor = ray.remote(num_cpus=1)(Holder).remote()
    try:
        there, threads = ray.get(actor.out.remote(*tensors), timeout=60)
    finally:
        ray.kill(actor)
    here, _ = Holder().out(*tensors)
    assert threads == 1
    assert np.array_equal(there, here)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "ray", "--ray-address", f"127.0.0.1:{free_port()}"], "got no answer at"),
        (["--engine", "ray", "--ray-address", "ray://head:10001"], "expected host:port"),
        (["--engine", "ray", "--ray-address", "127.0.0.1:99999"], "got no answer at"),
        (["--ray-address", "127.0.0.1:6379"], "expected with --engine ray alone"),
        (["--engine", "slurm"], "engine: expected local, ray, got 'slurm'"),
    ],
)
def test_bad_engines(
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert main([*QUICK, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_node_that_does_not_start_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    assert main([*QUICK, "--engine", "ray"]) != 0
    error = capsys.readouterr().err
    assert "no node started here" in error
    assert error.count("\n") == 1


def test_ray_without_the_fused_trainer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--p", "13", "--engine", "ray"]) == 2
    assert "add --fused" in capsys.readouterr().err


def test_ray_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "bilinear.training.ray_cluster", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([*QUICK, "--engine", "ray"]) == 2
    assert "pip install 'bilinear[ray]'" in capsys.readouterr().err


def test_the_rate_is_measured_on_a_node(
    two: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The node's cache is used, not the one of this process; two devices are two cores."""
    cells = study(seeds=1).cells
    backend = choose_engine(cells, engine="ray", fused=True, ray_address=two.address)
    assert backend.at_once == 1
    there = os.environ["BILINEAR_CACHE"]
    monkeypatch.setenv("BILINEAR_CACHE", str(tmp_path / "here"))
    first, second = calibrate(backend, cells), calibrate(backend, cells)
    assert first is not None
    assert second is not None
    assert second.source == "measured before"
    assert second.points == first.points
    assert second.devices == 2
    assert not (tmp_path / "here").exists()
    local = choose(cells[0], fused=True, device="cpu", workers=1)
    monkeypatch.setenv("BILINEAR_CACHE", there)
    assert calibrate(local, cells) == replace(second, devices=1)


def test_dry_run_and_hindsight_count_the_cluster(
    two: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "_WORTH_SECONDS", 0)
    run = [*QUICK, "--engine", "ray", "--ray-address", two.address, "--out", str(tmp_path / "out")]
    assert main([*run, "--dry-run"]) == 0
    said = capsys.readouterr().out.splitlines()
    rows = [line.split()[0] for line in said[-5:-1]]
    assert rows == ["1", "2", "8", "64"]
    (now,) = (line for line in said if "all there are now" in line)
    assert now.split()[0] == "2"
    assert main(run) == 0
    assert "estimated at most" in capsys.readouterr().out
