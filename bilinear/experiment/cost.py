"""What a sweep costs, counted before it runs."""

from dataclasses import dataclass

from bilinear.experiment.config import SweepConfig


@dataclass(frozen=True)
class Cost:
    """FLOP if no model stops early; bytes of memory a model in training needs, and on disk."""

    steps: int
    flop: int
    memory_bytes: int
    disk_bytes: int


def step_flop(config: SweepConfig, d_hidden: int) -> int:
    """Multiplications and additions of one step: logits, dW_p and dh, 2·d·p each a pair."""
    pairs = config.batch_size or config.n_train
    return 6 * pairs * d_hidden * config.p


def evaluation_flop(config: SweepConfig, d_hidden: int) -> int:
    """Those of one evaluation: the logits of all p² pairs."""
    return 2 * config.p**2 * d_hidden * config.p


def model_flop(config: SweepConfig, d_hidden: int) -> int:
    """Those of one model's whole run, tries that are not kept included."""
    steps = config.most_steps(d_hidden)
    evaluations = -(-steps // config.eval_every)
    return steps * step_flop(config, d_hidden) + evaluations * evaluation_flop(config, d_hidden)


def work_of_step(config: SweepConfig, d_hidden: int) -> float:
    """FLOP a step, its share of evaluations, and 16 hidden units' worth for what is not matmul."""
    matmul = step_flop(config, d_hidden) + evaluation_flop(config, d_hidden) / config.eval_every
    return matmul + step_flop(config, 16)


def model_disk_bytes(config: SweepConfig, d_hidden: int) -> int:
    """Bytes of a model's file at most: weights, learning curve, interaction matrices."""
    evaluations = -(-config.most_steps(d_hidden) // config.eval_every)
    interactions = 4 * len(config.remainders) * (2 * config.p) ** 2
    return 4 * 5 * config.p * d_hidden + 56 * evaluations + interactions


def training_bytes(config: SweepConfig, d_hidden: int) -> int:
    """Bytes of memory that a model takes on a CPU at most, while it is made, trained and written.

    As measured: 52 for each pair while the pairs are divided, 150 for each p·d (weights, moments,
    gradient and the initial weights), 65 for each number of the interaction matrices, 56 for each
    step and 660 for each evaluation.
    """
    p, steps = config.p, config.most_steps(d_hidden)
    evaluations = -(-steps // config.eval_every)
    kept = 65 * len(config.remainders) * p**2 + 56 * config.steps + 660 * evaluations
    return 52 * p**2 + 150 * p * d_hidden + kept


def notebook_bytes(config: SweepConfig, d_hidden: int) -> int:
    """As `training_bytes`, of the notebook's loop, which keeps every pair as a one-hot row."""
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
