"""What a sweep costs, counted before it runs."""

from dataclasses import dataclass

from bilinear.experiment.config import SweepConfig


@dataclass(frozen=True)
class Cost:
    """Steps and FLOP if no model stops early, memory of one model in training, bytes on disk."""

    steps: int
    flop: int
    memory_bytes: int
    disk_bytes: int


def step_flop(config: SweepConfig, d_hidden: int) -> int:
    """FLOP of one step: logits, dW_p and dh take 2·d·p each per pair."""
    pairs = config.batch_size or config.n_train
    return 6 * pairs * d_hidden * config.p


def evaluation_flop(config: SweepConfig, d_hidden: int) -> int:
    """FLOP of one evaluation: the logits of all p² pairs."""
    return 2 * config.p**2 * d_hidden * config.p


def model_flop(config: SweepConfig, d_hidden: int) -> int:
    """FLOP of one model's whole run, including starts that are not kept."""
    steps = config.most_steps(d_hidden)
    evaluations = -(-steps // config.eval_every)
    return steps * step_flop(config, d_hidden) + evaluations * evaluation_flop(config, d_hidden)


def work_of_step(config: SweepConfig, d_hidden: int) -> float:
    """FLOP of a step with its share of evaluations, and 16 units' worth for all but matmuls."""
    matmul = step_flop(config, d_hidden) + evaluation_flop(config, d_hidden) / config.eval_every
    return matmul + step_flop(config, 16)


def model_disk_bytes(config: SweepConfig, d_hidden: int) -> int:
    """Most bytes of a model's file: weights, learning curve, interaction matrices."""
    evaluations = -(-config.most_steps(d_hidden) // config.eval_every)
    interactions = 4 * len(config.remainders) * (2 * config.p) ** 2
    return 4 * 5 * config.p * d_hidden + 56 * evaluations + interactions


def training_bytes(config: SweepConfig, d_hidden: int) -> int:
    """Most bytes of memory that a model takes on a CPU while it is made, trained and written.

    Measured: 52 per pair while pairs are split, 150 per p·d (weights, moments, gradient, initial
    weights), 65 per number of the interaction matrices, 56 per step and 660 per evaluation.
    """
    p, steps = config.p, config.most_steps(d_hidden)
    evaluations = -(-steps // config.eval_every)
    kept = 65 * len(config.remainders) * p**2 + 56 * config.steps + 660 * evaluations
    return 52 * p**2 + 150 * p * d_hidden + kept


def notebook_bytes(config: SweepConfig, d_hidden: int) -> int:
    """As `training_bytes`, for the notebook's loop, which stores every pair as a one-hot row."""
    return training_bytes(config, d_hidden) + 40 * config.p**3


def sweep_cost(config: SweepConfig) -> Cost:
    """Count a sweep whose models all use up their steps; memory is that of the widest model."""
    seeds = len(config.seeds)
    return Cost(
        steps=seeds * sum(config.most_steps(d) for d in config.widths),
        flop=seeds * sum(model_flop(config, d) for d in config.widths),
        memory_bytes=training_bytes(config, max(config.widths)),
        disk_bytes=seeds * sum(model_disk_bytes(config, d) for d in config.widths),
    )
