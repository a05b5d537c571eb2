"""The GPU's grid kernels against PyTorch ops in float64; without a GPU, under the interpreter."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bilinear.experiment.task import split_pairs
from bilinear.kernels import grid_cpu
from bilinear.kernels.grid_torch import TorchGridModel
from bilinear.kernels.grid_triton import Recipe, TritonGrid
from bilinear.kernels.tiles import Tile
from bilinear.reading.exact_circuit import exact_circuit, smallest_margin

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BETAS, EPS = (0.9, 0.97), 1e-8
LR, DECAY = 2e-2, 0.3


def fresh_weights(p: int, d: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (d, 2 * p), (d, 2 * p), (p, d)
    w_l, w_r, w_p = (torch.randn(shape, dtype=dtype) / 3 for shape in shapes)
    return w_l, w_r, w_p


def recipe(p: int, steps: int, *, train_frac: float = 0.75, **changes: Any) -> Recipe:
    n_train = split_pairs(p, train_frac, 0).n_train
    lr = torch.linspace(LR, LR / 2, steps, dtype=torch.float64)
    settings: dict[str, Any] = {
        "p": p, "n_train": n_train, "lr": lr, "weight_decay": torch.full_like(lr, DECAY),
        "betas": BETAS, "eps": EPS, "eval_every": 2, "hold": 10**6, "goal_is_val": False,
    }  # fmt: skip
    return Recipe(**settings | changes)


class Case:
    """Models of several widths and two splits, with their float64 counterparts."""

    def __init__(
        self, how: Recipe, widths: list[int], dtype: torch.dtype = torch.float64, **changes: Any
    ) -> None:
        self.how = how
        start = [fresh_weights(how.p, d, dtype) for d in widths]
        frac = how.n_train / how.p**2
        splits = [split_pairs(how.p, frac + 1e-9, seed) for seed in (0, 1)]
        keys = [2**63 + 11 + i for i in range(len(widths))]
        which = [i % 2 for i in range(len(widths))]
        self.grid = TritonGrid(
            how, start, [s.pairs for s in splits], which, keys, DEVICE, **changes
        )
        self.models = torch.arange(len(widths), dtype=torch.int32, device=DEVICE).flip(0)
        self.oracles = [
            TorchGridModel(
                *(w.double() for w in weights), splits[s].pairs, how.n_train,
                betas=how.betas, eps=how.eps, batch=how.batch, shuffle_key=key,
            )
            for weights, s, key in zip(start, which, keys, strict=True)
        ]  # fmt: skip

    def check(self, steps: int, rtol: float) -> None:
        """Train the oracles alike; compare evaluations on the way and weights at the end."""
        for i, oracle in enumerate(self.oracles):
            at = 0
            while at < steps:
                to = min(at + self.how.eval_every, steps, self.how.steps)
                oracle.steps(self.how.lr[at:to], self.how.weight_decay[at:to])
                at = to
                if at < steps or at == self.how.steps:
                    found = self.grid.history[i, math.ceil(at / self.how.eval_every) - 1]
                    for x, y in zip(found.tolist(), oracle.evaluate(), strict=True):
                        assert x == pytest.approx(y, rel=10 * rtol, abs=10 * rtol)
            d = self.grid.widths[i]
            w_l, w_r, w_p = (w[0].cpu() for w in self.grid.weights([i]))
            assert not w_l[d:].any()
            assert not w_r[d:].any()
            assert not w_p[:, d:].any()
            for ours, theirs in zip((w_l[:d], w_r[:d], w_p[:, :d]), oracle.weights(), strict=True):
                assert (ours - theirs).norm() / theirs.norm() < rtol


@pytest.mark.parametrize(("p", "widths"), [(2, [1]), (7, [1, 5, 16]), (13, [17, 40])])
def test_a_run_follows_the_oracle(p: int, widths: list[int]) -> None:
    case = Case(recipe(p, steps=5), widths)
    case.grid.run(case.models, 5)
    assert case.grid.counters[:, 0].tolist() == [5] * len(widths)
    assert case.grid.counters[:, 2].all()
    case.check(5, rtol=1e-9)


@pytest.mark.parametrize(("p", "batch"), [(19, 0), (35, 0), (35, 20)])
def test_several_tiles_of_classes(p: int, batch: int) -> None:
    """As every p above 64 has; the tiles are small here because the interpreter is slow."""
    small = Tile(block_m=16, block_d=16, block_n=16, num_warps=4, num_stages=1)
    steps = 1 if p > 32 and not batch else 2
    case = Case(recipe(p, steps=steps, batch=batch), [3, 18][: 2 if p < 32 else 1], tile=small)
    case.grid.run(case.models, steps)
    case.check(steps, rtol=1e-9)


@pytest.mark.parametrize("chunks", [1, 3])
def test_launches_of_a_step_follow_the_oracle(chunks: int) -> None:
    case = Case(recipe(7, steps=4), [2, 20], chunks=chunks)
    for _ in range(5):
        case.grid.step(case.models)
    assert case.grid.counters[:, 2].all()
    case.check(4, rtol=1e-9)


def test_quanta_do_not_change_a_bit() -> None:
    torch.manual_seed(3)
    whole = Case(recipe(7, steps=6), [3, 17], torch.float32)
    torch.manual_seed(3)
    parts = Case(recipe(7, steps=6), [3, 17], torch.float32)
    whole.grid.run(whole.models, 100)
    for quantum in (1, 2, 5):
        parts.grid.run(parts.models, quantum)
    assert torch.equal(whole.grid._weights, parts.grid._weights)
    assert torch.equal(whole.grid.history, parts.grid.history)
    assert torch.equal(whole.grid.counters, parts.grid.counters)


@pytest.mark.parametrize(("p", "batch"), [(7, 5), (7, 36), (11, 20)])
def test_minibatches_follow_the_shuffle(p: int, batch: int) -> None:
    case = Case(recipe(p, steps=6, batch=batch, eval_every=3), [4, 18])
    case.grid.run(case.models, 4)  # stops in the middle of an epoch
    case.grid.run(case.models, 4)
    case.check(6, rtol=1e-9)


def test_float32_is_close() -> None:
    case = Case(recipe(13, steps=5), [8], torch.float32)
    case.grid.run(case.models, 5)
    case.check(5, rtol=2e-5)


@pytest.mark.parametrize("goal_is_val", [True, False])
def test_a_model_at_its_goal_stops(goal_is_val: bool) -> None:
    how = recipe(5, steps=40, hold=3, goal_is_val=goal_is_val)
    how = Recipe(**vars(how) | {"lr": how.lr * 0, "weight_decay": how.weight_decay * 0})
    split = split_pairs(5, 0.75, 0)
    circuit = tuple(exact_circuit(5).values())
    other = fresh_weights(5, 2, torch.float32)
    grid = TritonGrid(how, [circuit, other], [split.pairs], [0, 0], [1, 2], DEVICE)
    grid.run(torch.tensor([0, 1], dtype=torch.int32, device=DEVICE), 40)
    assert grid.counters[0].tolist() == [6, 3, 1]  # evaluated at 2, 4 and 6
    assert grid.counters[1, 0] == 40
    assert grid.history[0, 3:].isnan().all()


def test_diverged_weights_are_never_right() -> None:
    how = recipe(7, steps=2, hold=1)
    w_l, w_r, w_p = fresh_weights(7, 3, torch.float32)
    w_p[2, 1] = float("nan")
    split = split_pairs(7, 0.75, 0)
    grid = TritonGrid(how, [(w_l, w_r, w_p)], [split.pairs], [0], [0], DEVICE)
    grid.run(torch.tensor([0], dtype=torch.int32, device=DEVICE), 2)
    _, _, train_right, val_right, min_margin = grid.history[0, 0].tolist()
    assert (train_right, val_right) == (0, 0)
    assert math.isnan(min_margin)


@pytest.mark.skipif(grid_cpu.unavailable_because() is not None, reason="compares with the C kernel")
def test_loss_keeps_its_digits_when_every_pair_is_certain() -> None:
    scale = (40 / smallest_margin(5)) ** (1 / 3)
    weights = tuple(w * scale for w in exact_circuit(5).values())
    how, split = recipe(5, steps=1), split_pairs(5, 0.75, 0)
    how = Recipe(**vars(how) | {"lr": how.lr * 0, "weight_decay": how.weight_decay * 0})
    grid = TritonGrid(how, [weights], [split.pairs], [0], [0], DEVICE)
    grid.run(torch.tensor([0], dtype=torch.int32, device=DEVICE), 1)
    exact = grid_cpu.CpuGridModel(*weights, split.pairs, split.n_train).evaluate().train_loss
    assert 0 < exact < 1e-12
    assert grid.history[0, 0, 0].item() == pytest.approx(exact, rel=1e-3)


def test_bad_input_is_named() -> None:
    how, split = recipe(7, steps=2), split_pairs(7, 0.75, 0)
    weights = fresh_weights(7, 3, torch.float32)
    with pytest.raises(ValueError, match="precision"):
        TritonGrid(
            Recipe(**vars(how) | {"precision": "half"}), [weights], [split.pairs], [0], [0],
            DEVICE,
        )  # fmt: skip
