"""The sweep's training against the reference model."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from bilinear.experiment.config import SweepConfig
from bilinear.experiment.record import Finished, Job
from bilinear.experiment.schedule import Schedule
from bilinear.experiment.task import modular_addition, split_pairs
from bilinear.kernels import grid_cpu
from bilinear.kernels.grid_cpu import CpuGridModel
from bilinear.kernels.grid_torch import TorchGridModel
from bilinear.reference import Model, ModelConfig
from bilinear.training.backend import train
from bilinear.training.cpu import CpuBackend, make_model

needs_compiled = pytest.mark.skipif(
    grid_cpu.unavailable_because() is not None, reason=str(grid_cpu.unavailable_because())
)
MODELS = [pytest.param(CpuGridModel, marks=needs_compiled), TorchGridModel]


@needs_compiled
@pytest.mark.parametrize("d", [1, 2, 7, 64])
@pytest.mark.parametrize("p", [7, 59, 64, 97])
def test_two_hundred_steps_of_the_reference(p: int, d: int) -> None:
    """Same init, full batch, AdamW: the losses of the reference under autograd, to 1e-4."""
    steps = 200
    config = SweepConfig(
        p=p,
        widths=(d,),
        steps=steps,
        lr=Schedule(3e-3, 3e-3),
        weight_decay=Schedule(0.3, 0.3),
        betas=(0.9, 0.999),
        eval_every=1,
        hold=steps,
        remainders=(),
    )
    job = Job(d, 0)
    fused = make_model(CpuGridModel, config, job)
    model = Model(ModelConfig(p, d))
    w_l, w_r, w_p = fused.weights()
    model.load_state_dict(
        {"bi_linear.weight": torch.cat([w_l, w_r]), "projection.weight": w_p.clone()}
    )
    split = split_pairs(p, config.train_frac, job.seed)
    rows = (split.pairs[: split.n_train, 0] * p + split.pairs[: split.n_train, 1]).long()
    x, label = (t[rows] for t in modular_addition(p).tensors)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.3)
    lr, decay = config.lr.values(steps), config.weight_decay.values(steps)
    first = last = 0.0
    for step in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), label)
        assert fused.evaluate().train_loss == pytest.approx(loss.item(), rel=1e-4)
        loss.backward()
        optimizer.step()
        fused.steps(lr[step : step + 1], decay[step : step + 1])
        first, last = first or loss.item(), loss.item()
    assert last < 0.999 * first


SMALL = SweepConfig(
    p=7, widths=(9, 3, 1, 16), seeds=(0, 4), steps=120, eval_every=10, hold=3, remainders=(0,)
)


def trained(config: SweepConfig, model_type: type, workers: int) -> dict[Job, Finished]:
    backend = CpuBackend(model_type, workers, "test", "test")
    events = list(train(backend, config))
    return {e.job: e for e in events if isinstance(e, Finished)}


@pytest.mark.parametrize("model_type", MODELS)
def test_bits_do_not_depend_on_company(model_type: type) -> None:
    together = trained(SMALL, model_type, workers=2 if model_type is CpuGridModel else 1)
    assert set(together) == {Job(*job) for job in SMALL.jobs}
    alone = replace(SMALL, widths=(3,), seeds=(4,))
    one = trained(alone, model_type, workers=1)[Job(3, 4)]
    same = together[Job(3, 4)]
    assert all(torch.equal(one.state_dict[k], v) for k, v in same.state_dict.items())
    assert one.record.evaluations == same.record.evaluations


@needs_compiled
def test_backends_agree() -> None:
    compiled, plain = (trained(SMALL, m, 1) for m in (CpuGridModel, TorchGridModel))
    for job in compiled:
        ours, theirs = (x[job].record.evaluations for x in (compiled, plain))
        for a, b in list(zip(ours, theirs, strict=False))[:8]:
            assert a.train_loss == pytest.approx(b.train_loss, rel=1e-4)


@pytest.mark.parametrize("model_type", MODELS)
def test_minibatch_mode_learns(model_type: type) -> None:
    config = SweepConfig(
        p=7, widths=(16,), steps=36 * 40, batch_size=8, lr=Schedule(1e-2, 1e-2),
        weight_decay=Schedule(0.1, 0.1), betas=(0.9, 0.999), eval_every=4, goal="val", hold=1,
        remainders=(),
    )  # fmt: skip
    record = trained(config, model_type, 1)[Job(16, 0)].record
    assert record.evaluations[-1].train_acc == 1.0
    assert record.evaluations[0].train_loss > 1.5


def test_stopping_leaves_no_thread_behind() -> None:
    import threading

    config = SweepConfig(widths=(64, 63, 62), steps=10**7, hold=10**6, remainders=())
    backend = CpuBackend(TorchGridModel, 1, "test", "test")
    events = train(backend, config)
    next(events)
    events.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("bilinear")]


def test_a_failing_model_fails_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(TorchGridModel, "evaluate", broken)
    with pytest.raises(RuntimeError, match="no memory"):
        trained(SMALL, TorchGridModel, 1)
