"""How many steps a model of the default recipe takes before it stops, by width: what was seen."""

import numpy as np

from bilinear.experiment.config import SweepConfig
from bilinear.experiment.narrowing import Narrowing

# (width, share of models that were perfect, median of the steps to get there) at 75 % of the pairs.
# P = 64: 7 to 20 from bench/results/frontier-p64.json (48 seeds), the rest from
# docs/findings/results (4 seeds). Two seeds of P = 62 did alike. Narrower models: none.
_SEEN_EVEN = np.array([
    (7, .021, 3260), (8, .062, 1980), (9, .062, 3680), (10, .104, 2800), (11, .208, 2135),
    (12, .354, 1580), (13, .625, 835), (14, .875, 635), (15, .979, 560), (16, .979, 540),
    (17, .979, 450), (18, 1, 345), (19, 1, 310), (20, 1, 290), (24, 1, 405), (32, 1, 175),
    (40, 1, 140), (48, 1, 125), (64, 1, 135),
])  # fmt: skip
# Odd moduli need wider models. P = 53, 59, 67 and 71 together, two seeds each, means of the steps:
# python sweep.py --fused --p 53,59,67,71 --widths 12..20,24,28,32,40,48,53 --seeds 2
_SEEN_ODD = np.array([
    (13, 0, 3300), (14, .25, 3300), (15, .375, 2893), (16, .625, 1912), (17, .875, 2087),
    (18, 1, 1218), (19, 1, 900), (20, 1, 1216), (24, 1, 515), (28, 1, 379), (32, 1, 420),
    (40, 1, 178), (48, 1, 205), (53, 1, 176),
])  # fmt: skip
# Narrowed: mean steps of a width with those of starts that were not kept; 9 whole chains of
# python sweep.py --fused --narrow --widths 64..2 --seeds 9 (bench/results/narrowing-p64.json).
_SEEN_NARROWED = np.array([
    (1, 6000), (2, 53400), (3, 4100), (4, 52800), (5, 48900), (6, 15100), (7, 11800), (8, 7300),
    (9, 700), (10, 6700), (11, 11600), (12, 7100), (13, 3800), (14, 3000), (15, 700), (16, 800),
    (17, 220), (18, 170), (19, 110), (22, 100), (75, 100),
])  # fmt: skip
_NEAR_P = (50, 75)
# At 0.7 models take 1.4 times as long as told here, at 0.8 they take as long.
_NEAR_FRACTION = (0.73, 0.82)
_RECIPE = ("steps", "lr", "weight_decay", "betas", "eps", "batch_size", "init_scale", "goal")


def known(config: SweepConfig) -> bool:
    """Whether the models seen say anything of this config: P, fraction and recipe near theirs."""
    default = SweepConfig()
    return (
        (config.narrow is None or (config.narrow == Narrowing() and config.p % 2 == 0))
        and all(getattr(config, name) == getattr(default, name) for name in _RECIPE)
        and _NEAR_P[0] <= config.p <= _NEAR_P[1]
        and _NEAR_FRACTION[0] <= config.train_frac <= _NEAR_FRACTION[1]
    )


def expected_steps(config: SweepConfig, d_hidden: int) -> float:
    """Mean steps of a model: those that get there stop `hold` evaluations on, the others never.

    Between the widths seen by linear interpolation; all steps where nothing near was seen.
    """
    if not known(config):
        return config.most_steps(d_hidden)
    if config.parent(d_hidden) is not None:
        return float(np.interp(d_hidden, *_SEEN_NARROWED.T))
    if config.narrow is not None:
        return config.steps
    widths, shares, steps = (_SEEN_ODD if config.p % 2 else _SEEN_EVEN).T
    share = float(np.interp(d_hidden, widths, shares, left=0.0))
    stops = float(np.interp(d_hidden, widths, steps)) + (config.hold - 1) * config.eval_every
    return share * min(config.steps, stops) + (1 - share) * config.steps
