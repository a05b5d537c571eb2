"""How many steps a model of the default recipe takes before it stops, by width, as measured."""

from dataclasses import fields

import numpy as np

from bilinear.experiment.config import SweepConfig
from bilinear.experiment.narrowing import Narrowing

# (width, mean steps) at 75 % of the pairs; a model that never stopped early counts as 6,000.
# P = 64: to width 20 from bench/results/frontier-p64.json (48 seeds), the rest from
# docs/findings/results (4 seeds). Two seeds of P = 62 took about as long.
_EVEN = [
    (6, 6000), (10, 5700), (12, 4470), (13, 2830), (14, 1380), (15, 760), (17, 650), (18, 430),
    (24, 440), (32, 265), (64, 225),
]  # fmt: skip
# Odd moduli need wider models. P = 53, 59, 67 and 71 together, two seeds each:
# python sweep.py --fused --p 53,59,67,71 --widths 12..20,24,28,32,40,48,53 --seeds 2
_ODD = [
    (13, 6000), (15, 4870), (17, 2650), (18, 1310), (20, 1150), (24, 600), (32, 480), (40, 270),
]  # fmt: skip
# Narrowed, P even: steps of a width, starts that were not kept included; 23 chains (48 at 2) of
# python sweep.py --fused --narrow --widths 64..2 --seeds 48 (bench/results/narrowing-p64.json).
_NARROWED = [
    (1, 12000), (2, 24000), (3, 1400), (4, 550), (5, 4500), (6, 1300), (8, 1200), (9, 3700),
    (14, 3900), (15, 730), (17, 440), (18, 200), (20, 130), (22, 100),
]  # fmt: skip
# A config that differs in anything else is another recipe.
_MAY_DIFFER = {"p", "widths", "seeds", "train_frac", "remainders", "narrow", "precision"}


def expected_steps(config: SweepConfig, d_hidden: int) -> float:
    """Mean steps of a model of this width; its most steps if no similar config was measured."""
    narrowed = config.parent(d_hidden) is not None
    # The widest model of a chain never stops early.
    if not _near(config) or (config.narrow is not None and not narrowed):
        return config.most_steps(d_hidden)
    table = _NARROWED if narrowed else _ODD if config.p % 2 else _EVEN
    widths, steps = zip(*table, strict=True)
    return float(np.interp(d_hidden, widths, steps))


def _near(config: SweepConfig) -> bool:
    """Whether recipe, p and train fraction are near those of the models that were measured.

    At a fraction of 0.7 models take 1.4 times as long as at 0.75; at 0.8 they take the same time.
    """
    default = SweepConfig()
    recipe = [field.name for field in fields(config) if field.name not in _MAY_DIFFER]
    return (
        (config.narrow is None or (config.narrow == Narrowing() and config.p % 2 == 0))
        and all(getattr(config, name) == getattr(default, name) for name in recipe)
        and 50 <= config.p <= 75
        and 0.73 <= config.train_frac <= 0.82
    )
