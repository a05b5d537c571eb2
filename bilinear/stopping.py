"""How many steps a model of the default recipe takes before it stops, by width: what was seen."""

from itertools import pairwise

from bilinear.config import SweepConfig

# (width, share of models that were perfect, median of the steps to get there), P = 64, 75 % of the
# pairs: 7 to 20 from bench/results/frontier-p64.json (48 seeds), the rest from
# docs/findings/results (4 seeds).
_SEEN = (
    (7, 0.021, 3260),
    (8, 0.062, 1980),
    (9, 0.062, 3680),
    (10, 0.104, 2800),
    (11, 0.208, 2135),
    (12, 0.354, 1580),
    (13, 0.625, 835),
    (14, 0.875, 635),
    (15, 0.979, 560),
    (16, 0.979, 540),
    (17, 0.979, 450),
    (18, 1.0, 345),
    (19, 1.0, 310),
    (20, 1.0, 290),
    (24, 1.0, 405),
    (32, 1.0, 175),
    (40, 1.0, 140),
    (48, 1.0, 125),
    (64, 1.0, 135),
)
_NEAR_P = (48, 80)
_NEAR_FRACTION = (0.7, 0.85)


def known(config: SweepConfig) -> bool:
    """Whether the models seen say anything of this config: P, fraction and recipe near theirs."""
    default = SweepConfig()
    same = ("steps", "lr", "weight_decay", "betas", "eps", "batch_size", "init_scale", "goal")
    return (
        all(getattr(config, name) == getattr(default, name) for name in same)
        and _NEAR_P[0] <= config.p <= _NEAR_P[1]
        and _NEAR_FRACTION[0] <= config.train_frac <= _NEAR_FRACTION[1]
    )


def expected_steps(config: SweepConfig, d_hidden: int) -> float:
    """Mean steps of a model: those that get there stop `hold` evaluations on, the others never.

    All steps where nothing near the config was seen.
    """
    if not known(config):
        return config.steps
    share, median = _seen(d_hidden)
    stops = min(config.steps, median + (config.hold - 1) * config.eval_every)
    return share * stops + (1 - share) * config.steps


def _seen(d_hidden: int) -> tuple[float, float]:
    """Share and median steps at the width, between those seen by linear interpolation."""
    if d_hidden < _SEEN[0][0]:
        return 0.0, 0.0
    for (d0, *low), (d1, *high) in pairwise(_SEEN):
        if d_hidden <= d1:
            t = (d_hidden - d0) / (d1 - d0)
            share, median = (a + t * (b - a) for a, b in zip(low, high, strict=True))
            return share, median
    return _SEEN[-1][1], _SEEN[-1][2]
