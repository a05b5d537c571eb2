"""Both CPU grid models against autograd and torch.optim.AdamW in float64, and one another."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bilinear.experiment.task import split_pairs
from bilinear.kernels import grid_cpu
from bilinear.kernels.grid_cpu import CpuGridModel
from bilinear.kernels.grid_torch import TorchGridModel
from bilinear.kernels.shuffle import shuffled
from bilinear.reading.exact_circuit import exact_circuit, smallest_margin

needs_compiled = pytest.mark.skipif(
    grid_cpu.unavailable_because() is not None, reason=str(grid_cpu.unavailable_because())
)
MODELS = [pytest.param(CpuGridModel, marks=needs_compiled), TorchGridModel]
SIZES = [(2, 1), (3, 2), (7, 1), (7, 17), (13, 16), (17, 33), (59, 7), (64, 65)]
LR, DECAY = 2e-2, 0.3


def fresh_weights(p: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(d, 2 * p) / 3, torch.randn(d, 2 * p) / 3, torch.randn(p, d) / d**0.5


def constant(value: float, steps: int) -> Tensor:
    return torch.full((steps,), value, dtype=torch.float64)


class Autograd:
    """The same training by PyTorch's autograd and AdamW, on one-hot rows, in float64."""

    def __init__(self, weights: tuple[Tensor, Tensor, Tensor], pairs: Tensor, n_train: int) -> None:
        self.weights = [w.double().clone().requires_grad_() for w in weights]
        p = weights[2].shape[0]
        a, b = pairs.long().T
        self.x = torch.cat([F.one_hot(a, p), F.one_hot(b, p)], 1).double()
        self.label, self.n_train = (a + b) % p, n_train
        self.optimizer = torch.optim.AdamW(self.weights, lr=LR, weight_decay=DECAY)

    def logits(self, rows: Any) -> Tensor:
        w_l, w_r, w_p = self.weights
        return ((self.x[rows] @ w_l.T) * (self.x[rows] @ w_r.T)) @ w_p.T

    def step(self, rows: Any) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.logits(rows), self.label[rows]).backward()
        self.optimizer.step()


def poison(model: CpuGridModel | TorchGridModel) -> None:
    """Fills the gradients of the step before with NaN: a step must not read them."""
    if isinstance(model, CpuGridModel):
        model._gradient.fill_(float("nan"))


def error_of(model: Any, reference: Autograd) -> float:
    """The largest of the three weights' relative errors."""
    pairs = zip(model.weights(), reference.weights, strict=True)
    return max(float((a.double() - b.detach()).norm() / b.detach().norm()) for a, b in pairs)


def assert_same(model: Any, reference: Autograd, rtol: float) -> None:
    assert error_of(model, reference) < rtol


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize(("p", "d"), SIZES)
def test_full_batch_steps(model_type: type, p: int, d: int) -> None:
    """AdamW steps by the sign of a gradient near zero, so in a few draws one rounding shows."""
    split, steps, errors = split_pairs(p, 0.75, seed=p), 5, []
    for _ in range(3):
        weights = fresh_weights(p, d)
        model = model_type(*weights, split.pairs, split.n_train)
        reference = Autograd(weights, split.pairs, split.n_train)
        for _ in range(steps):
            poison(model)
            model.steps(constant(LR, 1), constant(DECAY, 1))
            reference.step(slice(split.n_train))
        errors.append(error_of(model, reference))
        moved = (model.weights()[0] - weights[0]).norm() / weights[0].norm()
        assert moved > 1e-2  # above what a draw may be off: a step that does nothing would be seen
    assert max(errors) < 5e-3
    assert min(errors) < 2e-5


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize(("p", "d", "batch"), [(7, 3, 5), (13, 17, 64), (23, 8, 130)])
def test_minibatch_steps_follow_the_shuffle(model_type: type, p: int, d: int, batch: int) -> None:
    split, weights, key = split_pairs(p, 0.75, seed=1), fresh_weights(p, d), 2**63 + 11
    model = model_type(*weights, split.pairs, split.n_train, batch=batch, shuffle_key=key)
    reference = Autograd(weights, split.pairs, split.n_train)
    per_epoch = split.n_train // batch
    for step in range(2 * per_epoch + 1):
        epoch, i = divmod(step, per_epoch)
        order = torch.from_numpy(shuffled(split.n_train, key, epoch))
        reference.step(order[i * batch : (i + 1) * batch])
    # In two calls: the second must go on in the middle of the epoch.
    for steps in (per_epoch + 1, per_epoch):
        model.steps(constant(LR, steps), constant(DECAY, steps))
    assert_same(model, reference, rtol=2e-5)


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize(("p", "d"), SIZES)
def test_evaluation(model_type: type, p: int, d: int) -> None:
    split, weights = split_pairs(p, 0.6, seed=2), fresh_weights(p, d)
    found = model_type(*weights, split.pairs, split.n_train).evaluate()
    reference = Autograd(weights, split.pairs, split.n_train)
    logits = reference.logits(slice(None)).detach()
    loss = F.cross_entropy(logits, reference.label, reduction="none")
    right = logits.gather(1, reference.label[:, None])[:, 0]
    margin = right - logits.scatter(1, reference.label[:, None], -torch.inf).amax(1)
    train, val = slice(split.n_train), slice(split.n_train, None)
    assert found.train_loss == pytest.approx(loss[train].mean().item(), rel=1e-5)
    assert found.val_loss == pytest.approx(loss[val].mean().item(), rel=1e-5)
    assert found.train_correct == (margin[train] > 0).sum()
    assert found.val_correct == (margin[val] > 0).sum()
    assert found.min_margin == pytest.approx(margin.min().item(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("p", [5, 64, 113])
def test_exact_circuit_is_perfect(model_type: type, p: int) -> None:
    circuit, split = exact_circuit(p), split_pairs(p, 0.75, seed=0)
    found = model_type(*circuit.values(), split.pairs, split.n_train).evaluate()
    assert found.train_correct + found.val_correct == p * p
    assert found.min_margin == pytest.approx(smallest_margin(p), rel=0.1)


@pytest.mark.parametrize("model_type", MODELS)
def test_loss_keeps_its_digits_when_every_pair_is_certain(model_type: type) -> None:
    """float32 log-softmax would give 0 here: e⁻⁴⁰ is lost beside 1."""
    circuit, split = exact_circuit(5), split_pairs(5, 0.75, seed=0)
    scale = (40 / smallest_margin(5)) ** (1 / 3)
    weights = [w * scale for w in circuit.values()]
    found = model_type(*weights, split.pairs, split.n_train).evaluate()
    reference = Autograd(tuple(weights), split.pairs, split.n_train)
    logits = reference.logits(slice(split.n_train)).detach()
    right = logits.gather(1, reference.label[: split.n_train, None])
    others = (logits - right).exp().sum(1) - 1
    exact = torch.log1p(
        (logits - right).scatter(1, reference.label[: split.n_train, None], -torch.inf).exp().sum(1)
    ).mean()
    assert others.max() < 1e-15
    expected = exact.item() if model_type is CpuGridModel else 0.0
    assert found.train_loss == pytest.approx(expected, rel=1e-3, abs=1e-30)


@pytest.mark.parametrize("model_type", MODELS)
def test_diverged_weights_are_never_right(model_type: type) -> None:
    w_l, w_r, w_p = fresh_weights(7, 3)
    w_p[2, 1] = float("nan")
    split = split_pairs(7, 0.75, seed=0)
    found = model_type(w_l, w_r, w_p, split.pairs, split.n_train).evaluate()
    assert math.isnan(found.min_margin)
    assert found.train_correct + found.val_correct == 0


@pytest.mark.parametrize("model_type", MODELS)
def test_a_tie_is_wrong(model_type: type) -> None:
    split = split_pairs(4, 0.75, seed=0)
    zeros = torch.zeros(2, 8), torch.zeros(2, 8), torch.zeros(4, 2)
    found = model_type(*zeros, split.pairs, split.n_train).evaluate()
    assert (found.train_correct, found.val_correct, found.min_margin) == (0, 0, 0.0)
    assert found.train_loss == pytest.approx(math.log(4), rel=1e-6)


@needs_compiled
@pytest.mark.parametrize(("p", "d"), [(7, 5), (64, 31), (97, 64)])
def test_bits_do_not_depend_on_vector_width(p: int, d: int) -> None:
    best = grid_cpu.best_isa()
    if best == "baseline":
        pytest.skip("this processor has one instruction set only")
    split, weights = split_pairs(p, 0.75, seed=0), fresh_weights(p, d)
    ends = []
    for isa in ("avx2", best):
        model = CpuGridModel(*weights, split.pairs, split.n_train, isa=isa)
        model.steps(constant(LR, 20), constant(DECAY, 20))
        ends.append((*model.weights(), model.evaluate()))
    assert all(torch.equal(x, y) for x, y in zip(ends[0][:3], ends[1][:3], strict=True))
    assert ends[0][3] == ends[1][3]


@needs_compiled
def test_every_instruction_set_trains() -> None:
    split, weights = split_pairs(13, 0.75, seed=0), fresh_weights(13, 6)
    for isa in grid_cpu.ISAS[: grid_cpu.ISAS.index(grid_cpu.best_isa()) + 1]:
        model = CpuGridModel(*weights, split.pairs, split.n_train, isa=isa)
        reference = Autograd(weights, split.pairs, split.n_train)
        for _ in range(3):
            reference.step(slice(split.n_train))
        model.steps(constant(LR, 3), constant(DECAY, 3))
        assert_same(model, reference, rtol=2e-5)
