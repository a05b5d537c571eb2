"""Narrowing: which units are dropped, which runs wait for which, what a model's bits depend on."""

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from bilinear.errors import ConfigError
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.initial_weights import initial_weights
from bilinear.experiment.narrowing import Narrowing
from bilinear.experiment.record import Finished, Job, Lineage, Weights
from bilinear.experiment.schedule import Phase, Schedule
from bilinear.experiment.task import modular_addition, split_pairs
from bilinear.kernels import grid_cpu
from bilinear.kernels.grid_cpu import CpuGridModel
from bilinear.kernels.grid_torch import TorchGridModel
from bilinear.reading.exact_circuit import exact_circuit
from bilinear.reference import Model, ModelConfig
from bilinear.results.open import load_results
from bilinear.results.sweep_results import Results
from bilinear.training import chains
from bilinear.training.backend import Work, train
from bilinear.training.chains import Chains, Run
from bilinear.training.choose import choose
from bilinear.training.cpu import CpuBackend
from bilinear.training.drops import order_of_units, ways_to_narrow
from bilinear.training.gpu import GpuBackend
from bilinear.training.run import run_sweep

needs_compiled = pytest.mark.skipif(
    grid_cpu.unavailable_because() is not None, reason=str(grid_cpu.unavailable_because())
)
STILL = Schedule(0, 0)
NARROW = Narrowing(
    drop="loss", widest_steps=70, tries=3, redraws=2, last_up_to=3, last_tries=2,
    last=Phase(60, Schedule(0.02, 0.02), STILL),
)  # fmt: skip
# Seven is small enough that some models reach the goal within these steps, and some do not.
CONFIG = SweepConfig(
    p=7, widths=(8, 6, 5, 4, 3, 2, 1), seeds=(0, 3), steps=80, hold=3, train_frac=0.8,
    remainders=(1,), narrow=NARROW,
)  # fmt: skip


def of_cpu(workers: int = 1, model_type: type = TorchGridModel) -> CpuBackend:
    return CpuBackend(model_type, workers, "torch-cpu", "test")


def finished(events: Iterator[object]) -> dict[Job, Finished]:
    return {event.job: event for event in events if isinstance(event, Finished)}


def random_weights(d: int, p: int = 7) -> Weights:
    return Weights(torch.randn(d, 2 * p), torch.randn(d, 2 * p), torch.randn(p, d))


def reference_loss(p: int, weights: Weights, seed: int, train_frac: float) -> float:
    model = Model(ModelConfig(p, len(weights.w_l))).double()
    model.load_state_dict(
        {"bi_linear.weight": torch.cat(weights[:2]), "projection.weight": weights.w_p}
    )
    split = split_pairs(p, train_frac, seed)
    rows = (split.pairs[: split.n_train, 0] * p + split.pairs[: split.n_train, 1]).long()
    x, label = (t[rows] for t in modular_addition(p).tensors)
    return F.cross_entropy(model(x.double()), label).item()


@pytest.mark.parametrize("backend", [of_cpu(), GpuBackend(torch.device("cpu"), "test", 2**30)])
def test_losses_without_each_unit(backend: CpuBackend | GpuBackend) -> None:
    weights = random_weights(6)
    rest = ([i for i in range(6) if i != unit] for unit in range(6))
    wanted = [reference_loss(7, weights.of_units(units), 3, 0.8) for units in rest]
    assert backend._losses_without(CONFIG, 3, weights) == pytest.approx(wanted, rel=1e-4)


def test_the_unit_that_training_misses_least_goes_first() -> None:
    weights = random_weights(5)
    losses = [0.3, math.nan, 0.1, 0.2, 0.1]
    narrower = replace(CONFIG, narrow=replace(NARROW, last_up_to=4))
    ways = ways_to_narrow(narrower, Job(4, 0), weights, lambda *_: losses)
    assert ways == [((2,), ()), ((4,), ()), ((3,), ())]  # NaN last, ties by place, three tries


def test_the_next_units_are_silenced_where_leaving_one_out_is_not_enough() -> None:
    weights = random_weights(6)
    places = weights.w_p[0].argsort().tolist()
    ways = ways_to_narrow(CONFIG, Job(5, 0), weights, lambda c, s, w: w.w_p[0].tolist())
    assert [way.dropped for way in ways] == [(places[0],)] * 3
    assert [way.silenced for way in ways] == [tuple(sorted(places[1 : 1 + n])) for n in range(3)]


def test_several_units_go_one_after_another() -> None:
    asked: list[Weights] = []

    def losses(config: SweepConfig, seed: int, weights: Weights) -> list[float]:
        asked.append(weights)
        return weights.w_p[0].tolist()  # so the unit with the least goes first

    weights = random_weights(6)
    ((out, silenced),) = ways_to_narrow(CONFIG, Job(3, 0), weights, losses)
    assert silenced == ()
    assert out == tuple(sorted(weights.w_p[0].argsort()[:3].tolist()))
    assert [len(each.w_l) for each in asked] == [6, 5, 4]


def test_norm_and_random_orders() -> None:
    weights = random_weights(5)
    size = weights.w_l.norm(dim=1) * weights.w_r.norm(dim=1) * weights.w_p.norm(dim=0)
    by_norm = replace(CONFIG, narrow=replace(NARROW, drop="norm", last_up_to=4))
    ways = ways_to_narrow(by_norm, Job(4, 0), weights, lambda *_: pytest.fail("asked"))
    assert [way.dropped[0] for way in ways] == size.argsort()[:3].tolist()
    at_random = replace(CONFIG, narrow=replace(NARROW, drop="random", tries=5, last_up_to=4))
    drawn = [ways_to_narrow(at_random, Job(4, seed), weights, lambda *_: []) for seed in range(9)]
    assert all(sorted(way.dropped[0] for way in ways) == list(range(5)) for ways in drawn)
    assert len({ways[0] for ways in drawn}) > 2
    assert drawn[0] == ways_to_narrow(at_random, Job(4, 0), weights, lambda *_: [])


def serving(*units: tuple[int, float, float], p: int = 7) -> Weights:
    """A unit for each (frequency, phase, amplitude)."""
    angle = 2 * torch.pi * torch.arange(p) / p
    wave = torch.stack([size * torch.cos(k * angle + phase) for k, phase, size in units])
    side = torch.cat([wave, wave], 1)
    return Weights(side, side, wave.T.contiguous())


def pretend(run: Run, reaches: bool) -> None:
    """End a run as a backend does: at the goal, or two pairs short of it."""
    pairs = run.config.p**2
    right = pairs if reaches else pairs - 2
    before = run.record.evaluations[-1].step if run.record.evaluations else 0
    for n in range(1, run.config.hold + 1):
        n_train = run.config.n_train
        run.record.add(before + n, 0.5, 0.0, n_train, right - n_train, 0.0)
    run.weights = Weights(*(w + 1 + w.abs().mean() for w in run.weights))


@pytest.mark.parametrize("order_seed", range(8))
def test_what_is_kept_does_not_depend_on_the_order_of_ends(order_seed: int) -> None:
    """Whether a run reaches the goal follows from what it trains; runs end in a random order."""

    def reaches(run: Run) -> bool:
        what = (run.job, run.lineage.units, len(run.record.evaluations), run.weights.w_p.sum())
        return random.Random(str(what)).random() < 0.3

    def descend(rng: random.Random) -> list[tuple[Job, list[int], int]]:
        work = Work(CONFIG, list(map(Job._make, CONFIG.jobs)))
        queue = Chains([work], lambda c, s, w: w.w_p.abs().sum(0).tolist())
        flying: list[Run] = []
        models: list[Finished] = []
        while True:
            while (run := queue.take(wait=False)) is not None:
                flying.append(run)
            if not flying:
                return sorted(
                    (m.job, list(m.lineage.units), m.lineage.tries) for m in models if m.lineage
                )
            run = flying.pop(rng.randrange(len(flying)))
            if queue.wanted(run):
                pretend(run, reaches(run))
                models += queue.bring_back(run)

    one = descend(random.Random(order_seed))
    assert one == descend(random.Random(order_seed + 100))
    assert [job for job, *_ in one] == sorted(map(Job._make, CONFIG.jobs))


def test_of_tries_the_first_at_the_goal_is_kept_else_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # At width 4, with last_up_to = 4, each way leaves out another unit; there is no last phase.
    monkeypatch.setattr(Narrowing, "last_at", lambda *_: False)
    config = replace(CONFIG, widths=(5, 4), seeds=(0,), narrow=replace(NARROW, last_up_to=4))

    def kept(succeeding: set[int]) -> Finished:
        queue = Chains([Work(config, [Job(5, 0), Job(4, 0)])], lambda *_: [0.0, 1.0, 2.0, 3.0, 4.0])
        root = queue.take()
        assert root is not None
        pretend(root, True)
        queue.bring_back(root)
        tries = [queue.take(wait=False) for _ in range(3)]
        assert queue.take(wait=False) is None
        models: list[Finished] = []
        for run in reversed(tries):
            assert run is not None
            if queue.wanted(run):
                pretend(run, run.lineage.dropped[0] in succeeding)
                models += queue.bring_back(run)
        (model,) = models
        return model

    lineages = [kept(those).lineage for those in ({1, 2}, {0}, set())]
    assert [(x.dropped, x.tries) for x in lineages if x] == [((1,), 2), ((0,), 1), ((0,), 3)]
    assert kept(set()).lineage == ((1, 2, 3, 4), 5, (0,), None, 3)


def test_weights_are_drawn_when_a_model_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Initial weights of a million models at once would not fit the memory."""
    drawn: list[tuple[int, ...]] = []

    def draw(p: int, d: int, seed: int, *_: object, **__: object) -> Weights:
        drawn.append((d, seed))
        return random_weights(d)

    monkeypatch.setattr(chains, "initial_weights", draw)
    config = replace(CONFIG, narrow=None)
    queue = Chains([Work(config, list(map(Job._make, config.jobs)))], lambda *_: [])
    assert drawn == []
    for taken in range(1, 4):
        assert queue.take() is not None
        assert len(drawn) == taken


@needs_compiled
def test_bits_for_any_number_of_threads_and_company() -> None:
    alone = replace(CONFIG, seeds=(3,))
    together = finished(train(of_cpu(3, CpuGridModel), CONFIG))
    by_itself = finished(train(of_cpu(1, CpuGridModel), alone))
    assert set(together) == set(map(Job._make, CONFIG.jobs))
    for job, model in by_itself.items():
        assert model.record.evaluations == together[job].record.evaluations
        assert model.lineage == together[job].lineage
        assert all(map(torch.equal, model.weights, together[job].weights))


def test_a_width_starts_from_the_wider_model_less_a_unit() -> None:
    """At a learning rate of 0 every narrower model's weights are part of the widest model's."""
    still = replace(
        CONFIG, lr=STILL, weight_decay=STILL,
        narrow=replace(NARROW, redraws=0, last=Phase(60, STILL, STILL)),
    )  # fmt: skip
    for job, model in finished(train(of_cpu(), still)).items():
        root = Weights(*initial_weights(7, 8, job.seed))
        assert model.lineage is not None
        assert model.lineage.redrawn is None
        assert len(model.lineage.units) == job.d_hidden
        assert all(map(torch.equal, model.weights, root.of_units(model.lineage.units)))


def test_a_unit_drawn_anew_is_the_next_to_go() -> None:
    """Of four runs the last, which is the second with a unit drawn anew, reaches the goal."""
    narrow = replace(NARROW, tries=1)
    still = replace(CONFIG, lr=STILL, weight_decay=STILL, widths=(8, 7), seeds=(0,), narrow=narrow)
    queue = Chains([Work(still, [Job(8, 0), Job(7, 0)])], lambda c, s, w: w.w_p[0].tolist())
    seen: list[Run] = []
    models: list[Finished] = []
    while (run := queue.take(wait=False)) is not None:
        seen.append(replace(run))
        pretend(run, reaches=len(seen) == 4)
        models += queue.bring_back(run)
    root, first, redrawn, second = seen
    assert root.lineage.units == tuple(range(8))
    (out,) = first.lineage.dropped
    assert out == int(root.weights.w_p[0].argmin())
    for run in (redrawn, second):
        place = run.lineage.units.index(8 + 7)
        assert run.lineage.redrawn == first.lineage.units[place]
        same = [n for n in range(7) if n != place]
        before = Weights(*(w + 1 + w.abs().mean() for w in first.weights))
        assert place == int(before.w_p[0].argmin())
        assert all(map(torch.equal, run.weights.of_units(same), before.of_units(same)))
    rows = (r.weights.w_l[r.lineage.units.index(15)] for r in (redrawn, second))
    assert not torch.equal(*rows)
    assert models[-1].lineage == second.lineage._replace(tries=3)
    assert [e.step for e in models[-1].record.evaluations] == list(range(1, 2 * 3 + 1))


@pytest.mark.parametrize("backend", [of_cpu(), GpuBackend(torch.device("cpu"), "test", 2**30)])
def test_the_widest_model_alone_trains_to_its_last_step(
    backend: CpuBackend | GpuBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts as the exact circuit and two units of weight zero, and the learning rate is 0."""
    config = replace(CONFIG, widths=(4, 3, 2), seeds=(0,), lr=STILL, weight_decay=STILL)
    circuit = exact_circuit(7)
    exact = Weights(circuit["w_l"], circuit["w_r"], circuit["w_p"])
    four = Weights(*(F.pad(w, (0, 0, 1, 1)) for w in exact.of_rows()))
    root = four._replace(w_p=four.w_p.T.contiguous())
    monkeypatch.setattr(chains, "initial_weights", lambda *_, **__: root)
    models = finished(train(backend, config))
    steps = {job.d_hidden: m.record.evaluations[-1].step for job, m in models.items()}
    assert steps == {4: 70, 3: 30, 2: 30}
    for model in models.values():
        assert model.row["perfect"]
    assert models[Job(2, 0)].lineage == Lineage((1, 2), 3, (3,))
    assert all(map(torch.equal, models[Job(2, 0)].weights, exact))


def test_the_weakest_circuit_goes_first() -> None:
    """Unit 6 has no amplitude; frequency 4 shares a factor with p; 3 has less in all than 1."""
    angle = 2 * torch.pi * torch.arange(8) / 8
    served, size = [3, 1, 4, 1, 3, 3, 1], [1.0, 2.0, 9.0, 1.0, 0.5, 0.7, 0.001]
    wave = torch.stack([torch.cos(k * angle) for k in served])
    side = torch.cat([wave, wave], 1)
    model = Weights(side, side, (wave * torch.tensor(size)[:, None]).T.contiguous())
    config = replace(CONFIG, p=8, narrow=replace(NARROW, drop="circuit", tries=7))
    order = order_of_units(config, Job(6, 0), model, lambda *_: pytest.fail("asked"))
    assert order == [6, 2, 4, 5, 0, 3, 1]


def test_circuits_are_silenced_whole() -> None:
    """Unit 4 has no amplitude; 0 and 3 are the weakest circuit, 1 alone is the next."""
    model = serving((1, 0, 0.5), (2, 0, 1), (3, 0, 2), (1, 1, 0.6), (2, 0, 0), (3, 1, 2))
    config = replace(CONFIG, narrow=replace(NARROW, drop="circuit", tries=9, last_up_to=2))
    ways = ways_to_narrow(config, Job(4, 0), model, lambda *_: pytest.fail("asked"))
    assert ways == [((0, 4), ()), ((0, 4), (3,)), ((0, 4), (1, 3))]


def test_units_without_amplitude_go_gently() -> None:
    """First one run at the recipe's last rate; if it misses the goal, the ways to narrow follow."""
    config = replace(
        CONFIG, widths=(5, 4), seeds=(0,), narrow=replace(NARROW, drop="circuit", redraws=0)
    )  # fmt: skip
    for holds in (True, False):
        queue = Chains([Work(config, [Job(5, 0), Job(4, 0)])], lambda *_: [])
        root = queue.take()
        assert root is not None
        pretend(root, True)
        root.weights = serving((3, 0, 2), (3, 1, 2), (2, 0, 1), (1, 0, 0), (2, 1, 1))
        queue.bring_back(root)
        gentle = queue.take(wait=False)
        assert gentle is not None
        assert gentle.phase == config.settling
        assert gentle.phase.steps == config.hold * config.eval_every
        assert gentle.lineage.dropped == (3,)
        assert queue.take(wait=False) is None
        pretend(gentle, holds)
        models = queue.bring_back(gentle)
        following = queue.take(wait=False)
        assert [m.job for m in models] == [Job(4, 0)] * holds
        assert (following is None) == holds
        assert holds or (following is not None and following.phase == config.recipe)


def test_the_last_phase_goes_on_from_the_least_training_losses() -> None:
    config = replace(CONFIG, widths=(4, 3), seeds=(0,))
    queue = Chains([Work(config, [Job(4, 0), Job(3, 0)])], lambda *_: [0.0, 1.0, 2.0, 3.0])
    root = queue.take()
    assert root is not None
    pretend(root, True)
    queue.bring_back(root)
    tried = [queue.take(wait=False) for _ in range(3)]
    for run, loss in zip(tried, (0.5, math.nan, 0.1), strict=True):
        assert run is not None
        run.record.add(10, loss, 0.0, 0, 0, 0.0)
        queue.bring_back(run)
    last = [run for run in (queue.take(wait=False) for _ in range(3)) if run is not None]
    assert [run.phase for run in last] == [NARROW.last] * 2
    assert [run.lineage.dropped for run in last] == [(2,), (0,)]


def test_a_gpu_narrows_as_a_cpu_does() -> None:
    config = replace(CONFIG, seeds=(0,), widths=(4, 3, 1), steps=12)
    ours = finished(train(GpuBackend(torch.device("cpu"), "test", memory=2**30), config))
    theirs = finished(train(of_cpu(), config))
    assert set(ours) == set(theirs)
    for job, model in ours.items():
        assert model.lineage == theirs[job].lineage
        steps = [[e.step for e in m.record.evaluations] for m in (model, theirs[job])]
        assert steps[0] == steps[1]
        for mine, other in zip(model.weights, theirs[job].weights, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("gone", [(1, 2, 3), (4,), (8,), (5, 2)])
def test_missing_models_come_back_to_the_bit(gone: tuple[int, ...], tmp_path: Path) -> None:
    config = replace(CONFIG, seeds=(3,))
    run_sweep(config, of_cpu(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for d in gone:
        (tmp_path / "models" / f"d{d:03d}-s0003.safetensors").unlink()
    (tmp_path / "table.parquet").unlink()
    run_sweep(config, of_cpu(), tmp_path)
    after = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_a_stopped_chain_goes_on(tmp_path: Path) -> None:
    run_sweep(CONFIG, of_cpu(2), tmp_path / "whole")
    stops = random.Random()

    def stop_at_random(event: object) -> None:
        if isinstance(event, Finished) and stops.random() < 0.4:
            raise KeyboardInterrupt

    for _ in range(100):
        try:
            run_sweep(CONFIG, of_cpu(2), tmp_path / "stopped", stop_at_random)
            break
        except KeyboardInterrupt:
            continue
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file():
            other = tmp_path / "stopped" / path.relative_to(tmp_path / "whole")
            assert path.read_bytes() == other.read_bytes(), path.name


def test_the_table_names_parents_and_units(tmp_path: Path) -> None:
    run_sweep(CONFIG, of_cpu(), tmp_path)
    results = load_results(tmp_path)
    assert isinstance(results, Results)
    chain = results.table[results.table.seed == 0].set_index("d_hidden")
    assert chain.parent.fillna(0).tolist() == [0, 8, 6, 5, 4, 3, 2]
    assert chain.dropped_unit.isna().tolist() == [True, True] + [False] * 5
    for d, wider in zip(CONFIG.widths[1:], CONFIG.widths, strict=False):
        units, more = (results.units[width, 0].tolist() for width in (d, wider))
        if wider - d == 1:
            anew = [] if pd.isna(chain.redrawn_unit[d]) else [chain.redrawn_unit[d]]
            assert set(more) - set(units) == {chain.dropped_unit[d], *anew}
            assert set(units) - set(more) == {8 + d for _ in anew}


def test_the_reference_loop_refuses() -> None:
    config = replace(CONFIG, batch_size=4, lr=Schedule(1e-3, 1e-3), weight_decay=Schedule(0, 0))
    with pytest.raises(ConfigError, match="narrow: the reference loop trains each width by itself"):
        choose(config, fused=False)
