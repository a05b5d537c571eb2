"""Launcher of one-hot-pair training on a GPU (algebra and tiles: `grid_device.py`).

Two shapes of the loop over steps, the same arithmetic: `step` takes one full-batch step of all
models in two launches, each model cut into chunks of b's, so that few models too use all of a
device; `run` trains each model to the end of a quantum of steps in one program, minibatches too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import triton.language as tl
from torch import Tensor

from .dispatch import device_class
from .grid_device import grid_run_kernel, grid_step_kernel, grid_update_kernel
from .launch import Start, launch
from .tiles import Tile, blocks

# How each precision forms a product of float32 matrices on tensor cores: as a sum of products of
# bfloat16 parts (six of three parts each keep 24 bits, three of two keep 16), or in tf32 (11 bits).
PRECISIONS = {"highest": "bf16x6", "high": "bf16x3", "tf32": "tf32"}
METRICS = 5
# Units held at a time where registers and shared memory suffice: a model no wider makes its logits
# once. By count; docs/decisions.md.
_UNITS = (16, 32, 64)
TILE = Tile(block_m=64, block_d=_UNITS[0], block_n=64, num_warps=4, num_stages=1)
# Programs that share the b's of a step. It depends on p alone, so that no bit of a model depends on
# the models trained beside it.
_CHUNKS = 4
_LEAST_P_FOR_CHUNKS = 32
# Cycles a b, and a further block of units, modelled on Hopper (docs/decisions.md), for a first
# launch of about the time that one should take; the second follows the first one's own time.
_CYCLES = {16: 4_200, 32: 6_800, 64: 11_000}
_CYCLES_OTHER = 1_300
_CLOCK = 1.7e9
_UPDATE = Tile(block_m=0, num_warps=16, num_stages=1)
# Elements of an AdamW step that a program holds at a time, beside its tiles and alone.
_BLOCK, _UPDATE_BLOCK = 2048, 8192


@dataclass(frozen=True)
class Recipe:
    """How all models of a grid are trained.

    `lr` and `weight_decay` (steps,) are float64. `batch` 0 is full batch, otherwise pairs a step.
    Weights are evaluated every `eval_every` steps and after the last; a model stops at the
    `hold`-th evaluation in a row at which all pairs, or with `goal_is_val` all held-out ones, are
    right.
    """

    p: int
    n_train: int
    lr: Tensor
    weight_decay: Tensor
    betas: tuple[float, float]
    eps: float
    eval_every: int
    hold: int
    goal_is_val: bool
    batch: int = 0
    precision: str = "highest"

    @property
    def steps(self) -> int:
        """Steps of a whole run."""
        return len(self.lr)

    @property
    def evaluations(self) -> int:
        """Evaluations of a whole run."""
        return blocks(self.steps, self.eval_every)


def tile_of(
    recipe: Recipe, d: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tile:
    """a's (block_m), units (block_d) and classes (block_n) that a program holds at a time."""
    one_tile = recipe.p <= TILE.block_n
    if recipe.batch == 0 and one_tile and dtype == torch.float32 and _is_large(device):
        return replace(TILE, block_d=next((u for u in _UNITS if d <= u), _UNITS[-1]))
    return TILE


def _is_large(device: torch.device) -> bool:
    """Whether 64 units' operands fit the shared memory; the interpreter is treated as Hopper."""
    if device.type != "cuda":
        return True
    return device_class(torch.cuda.get_device_capability(device)) == "sm_90"


def padded(recipe: Recipe, d: int, device: torch.device) -> int:
    """Width in memory of a model of d units: models of equal padded widths share a launch."""
    units = tile_of(recipe, d, device).block_d
    return blocks(d, units) * units


def chunks_of(recipe: Recipe) -> int:
    """How many programs share a step of one model."""
    return 1 if recipe.batch or recipe.p < _LEAST_P_FOR_CHUNKS else _CHUNKS


def bytes_a_model(recipe: Recipe, d: int, device: torch.device) -> int:
    """Device memory that one model of d units takes while it trains in float32."""
    rows = 5 * recipe.p * (3 + chunks_of(recipe))
    return 4 * (rows * padded(recipe, d, device) + recipe.evaluations * METRICS)


def step_seconds(recipe: Recipe, d: int, models: int, device: torch.device, at_once: int) -> float:
    """Modelled time of a full-batch step of `models`, on `at_once` multiprocessors."""
    units, width = tile_of(recipe, d, device).block_d, padded(recipe, d, device)
    tiles, passes = blocks(recipe.p, TILE.block_n), blocks(width, units)
    others = tiles * passes - 1
    cycles_a_b = tiles * tiles * passes * (_CYCLES[units] + others * _CYCLES_OTHER)
    programs = blocks(models * chunks_of(recipe), at_once)
    return cycles_a_b * blocks(recipe.p, chunks_of(recipe)) * programs / _CLOCK


class TritonGrid:
    """Many models of one padded width on a device, trained in place.

    `counters` (n, 3) int32 are steps taken, evaluations in a row at the goal, and whether a model
    is done; `history` (n, evaluations, 5) its evaluations: mean losses over training and validation
    pairs (nats), counts of right answers likewise, smallest margin.
    """

    def __init__(
        self,
        recipe: Recipe,
        weights: Sequence[tuple[Tensor, Tensor, Tensor]],
        splits: Sequence[Tensor],
        split_of: Sequence[int],
        shuffle_keys: Sequence[int],
        device: torch.device,
        chunks: int = 1,
        tile: Tile | None = None,
    ) -> None:
        """Start from each model's w_l, w_r (d, 2p) and w_p (p, d), with zero moments.

        `splits` are pairs (p², 2) int32 with those trained on first; `split_of` says which is each
        model's, `shuffle_keys` (64 bits) each model's order of batches. `chunks` is how `step` cuts
        a model. Arithmetic is done in the weights' dtype, float32 or float64. `tile` is what a
        program holds at a time instead of `tile_of`.
        """
        p, dtype = recipe.p, weights[0][2].dtype
        if recipe.precision not in PRECISIONS:
            raise ValueError(f"precision: expected {tuple(PRECISIONS)}, got {recipe.precision!r}")
        self.recipe, self.device, self.chunks = recipe, device, chunks
        self.widths = [w_l.shape[0] for w_l, _, _ in weights]
        self._tile = tile or tile_of(recipe, max(self.widths), device, dtype)
        units = self._tile.block_d
        self.d = blocks(max(self.widths), units) * units
        packed = torch.stack([_pack(p, self.d, *each) for each in weights])
        self._weights = packed.to(device)
        self._moment1 = torch.zeros_like(self._weights)
        self._moment2 = torch.zeros_like(self._weights)
        n = len(weights)
        shape = (n, chunks, 5 * p, self.d)
        self._gradient = torch.empty(shape, dtype=dtype, device=device)
        self._sums = torch.empty((n, chunks, METRICS), dtype=dtype, device=device)
        self.counters = torch.zeros((n, 3), dtype=torch.int32, device=device)
        history = torch.full((n, recipe.evaluations, METRICS), float("nan"), dtype=dtype)
        self.history = history.to(device)
        self._split_of = torch.tensor(split_of, dtype=torch.int32, device=device)
        signed = [key - 2**64 if key >= 2**63 else key for key in shuffle_keys]
        self._keys = torch.tensor(signed, dtype=torch.int64, device=device)
        # In the weights' dtype: with an int8 load among the operands of a float64 product, Triton
        # 3.6 chooses a layout that float64 products lack ("fp64 don't support largeK MMA").
        trained = torch.stack([_trained(p, s, recipe.n_train) for s in splits])
        self._trained = trained.to(device, dtype)
        self._pairs = torch.stack([s[: recipe.n_train] for s in splits]).int().to(device)
        self._schedule = _schedule(recipe).to(dtype).to(device)
        self._hyper = torch.tensor([*recipe.betas, recipe.eps], dtype=dtype, device=device)
        # The interpreter multiplies in the operands' dtype; it has no other precision.
        exact = dtype == torch.float64 or device.type == "cpu"
        self._precision = "ieee" if exact else PRECISIONS[recipe.precision]
        self._acc = tl.float64 if dtype == torch.float64 else tl.float32

    def run(self, models: Tensor, quantum: int) -> None:
        """Take up to `quantum` steps with each of `models` (n,) int32, in one launch.

        Programs start in the order of `models`: those that take longest belong first.
        """
        r = self.recipe
        half_bits = max(1, blocks((r.n_train - 1).bit_length(), 2))
        args = (
            self._weights, self._moment1, self._moment2, self._gradient, self.counters,
            self.history, models, self._split_of, self._keys, self._trained, self._pairs,
            self._schedule, self._hyper,
        )  # fmt: skip
        numbers = (
            r.n_train, r.batch, half_bits, quantum, r.steps, r.eval_every, r.hold,
            int(r.goal_is_val),
        )  # fmt: skip
        constants = self._constants() | {"BLOCK": _BLOCK, "MINIBATCH": r.batch > 0}
        launch(grid_run_kernel, Start((len(models),), self._tile, numbers, constants), args)

    def step(self, models: Tensor) -> None:
        """Take one full-batch step with each of `models` (n,) int32, in two launches."""
        r = self.recipe
        if r.batch:
            raise ValueError("batch: expected 0 (full batch) for a launch a step")
        n = len(models)
        args = (
            self._weights, self._gradient, self._sums, self.counters, models, self._split_of,
            self._trained,
        )  # fmt: skip
        numbers = (r.n_train, r.steps, r.eval_every)
        constants = self._constants() | {"CHUNKS": self.chunks}
        launch(grid_step_kernel, Start((n, self.chunks), self._tile, numbers, constants), args)
        update = (
            self._weights, self._moment1, self._moment2, self._gradient, self._sums,
            self.counters, self.history, models, self._split_of, self._schedule, self._hyper,
        )  # fmt: skip
        more = (*numbers, r.hold, int(r.goal_is_val))
        sizes = {"p": r.p, "D": self.d, "CHUNKS": self.chunks, "BLOCK": _UPDATE_BLOCK}
        launch(grid_update_kernel, Start((n,), _UPDATE, more, sizes), update)

    def keep_for(self, stream: torch.cuda.Stream) -> None:
        """Keep each tensor's memory until what `stream` was given before it is freed has ended.

        A grid is dropped once its models are done, while its last launch may still wait to run.
        """
        for tensor in vars(self).values():
            if isinstance(tensor, Tensor):
                tensor.record_stream(stream)

    def stop(self, models: Sequence[int]) -> None:
        """Mark these models as done, without waiting for the GPU."""
        on_gpu = self.device.type == "cuda"
        flags = torch.zeros(len(self.widths), dtype=torch.int32, pin_memory=on_gpu)
        flags[list(models)] = 1
        # Pinned: a copy from pageable memory would make the host wait for all that is enqueued.
        self.counters[:, 2].bitwise_or_(flags.to(self.device, non_blocking=True))

    def state(self) -> dict[str, Tensor]:
        """Everything that a run needs to continue, one row for each model: copies on the host."""
        return {name: tensor.cpu() for name, tensor in self._state().items()}

    def restore(self, model: int, state: Mapping[str, Tensor]) -> None:
        """Put a model's rows of an earlier `state` back."""
        for name, tensor in self._state().items():
            if state[name].shape != tensor[model].shape:
                raise ValueError(
                    f"state {name}: expected {tuple(tensor[model].shape)}, "
                    f"got {tuple(state[name].shape)}"
                )
            tensor[model].copy_(state[name])

    def _state(self) -> dict[str, Tensor]:
        return {
            "weights": self._weights,
            "moment1": self._moment1,
            "moment2": self._moment2,
            "counters": self.counters,
            "history": self.history,
        }

    def _constants(self) -> dict[str, object]:
        tile = self._tile.fit(m=self.recipe.p, d=self.d, n=self.recipe.p)
        tiles = blocks(self.recipe.p, tile.block_n)
        return {
            "p": self.recipe.p, "C": tile.block_n, "TILES": tiles, "BA": tile.block_m,
            "D": self.d, "U": tile.block_d, "HOLD": tiles == 1,
            "PRECISION": self._precision, "ACC": self._acc,
        }  # fmt: skip

    def weights(self, models: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Copy out, on the device: w_l, w_r (n, D, 2p) and w_p (n, p, D), zero past d units."""
        rows = self._weights[torch.tensor(models, device=self.device)]
        l_a, r_a, w_p, l_b, r_b = rows.unflatten(1, (5, self.recipe.p)).unbind(1)
        return torch.cat([l_a, l_b], 1).mT, torch.cat([r_a, r_b], 1).mT, w_p


def _pack(p: int, d: int, w_l: Tensor, w_r: Tensor, w_p: Tensor) -> Tensor:
    packed = w_l.new_zeros(5, p, d)
    for rows, half in ((0, w_l), (1, w_r)):
        packed[rows, :, : len(half)] = half[:, :p].T
        packed[rows + 3, :, : len(half)] = half[:, p:].T
    packed[2, :, : w_p.shape[1]] = w_p
    return packed.view(5 * p, d)


def _trained(p: int, pairs: Tensor, n_train: int) -> Tensor:
    """Whether (a, b) is trained on, at [b, a]."""
    a, b = pairs[:n_train].long().T
    mask = torch.zeros(p, p, dtype=torch.bool)
    mask[b, a] = True
    return mask


def _schedule(recipe: Recipe) -> Tensor:
    """(steps, 3) float64: lr/(1 − β₁ᵗ), 1/√(1 − β₂ᵗ), lr·decay."""
    t = torch.arange(1, recipe.steps + 1, dtype=torch.float64)
    beta1, beta2 = recipe.betas
    rate = recipe.lr / (1 - beta1**t)
    return torch.stack([rate, (1 - beta2**t) ** -0.5, recipe.lr * recipe.weight_decay], 1)
