"""What a sweep costs, counted before it runs."""

from dataclasses import dataclass

from bilinear.config import SweepConfig


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
    """Those of one model's whole run."""
    evaluations = -(-config.steps // config.eval_every)
    return config.steps * step_flop(config, d_hidden) + evaluations * evaluation_flop(
        config, d_hidden
    )


def sweep_cost(config: SweepConfig) -> Cost:
    """Count a sweep whose models all use up their steps; memory is that of the widest model."""
    evaluations = -(-config.steps // config.eval_every)
    disk = sum(
        4 * 5 * config.p * d + 56 * evaluations + 4 * len(config.remainders) * (2 * config.p) ** 2
        for d, _ in config.jobs
    )
    return Cost(
        steps=config.steps * len(config.jobs),
        flop=sum(model_flop(config, d) for d, _ in config.jobs),
        memory_bytes=4 * 4 * 5 * config.p * max(config.widths) + 8 * config.p**2,
        disk_bytes=disk,
    )
