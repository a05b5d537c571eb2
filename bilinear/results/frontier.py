"""The frontier: how small a width still generalises perfectly, with confidence intervals."""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_Z95 = 1.959963984540054


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % confidence interval of a share (Wilson 1927), valid at shares of 0 and 1 too.

    Raises ValueError unless 0 ≤ successes ≤ trials and trials > 0.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"expected 0 ≤ successes ≤ trials > 0, got {successes} of {trials}")
    share, z2 = successes / trials, _Z95**2
    centre = share + z2 / (2 * trials)
    half = _Z95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    scale = 1 + z2 / trials
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == trials else (centre + half) / scale
    return low, high


def frontier(table: "pd.DataFrame") -> dict[str, Any]:
    """Summarise a results table: by width the share of perfect models, and the smallest width.

    `perfect` counts models that are right on all p² pairs and stayed so (see
    `experiment.record.Record.row`); `median_steps` is to the first such evaluation, over them.
    """
    widths: list[dict[str, Any]] = []
    for d_hidden, group in table.groupby("d_hidden", sort=True):
        perfect = group[group["perfect"]]
        low, high = wilson_interval(len(perfect), len(group))
        widths.append(
            {
                "d_hidden": int(str(d_hidden)),
                "models": len(group),
                "perfect": len(perfect),
                "share": len(perfect) / len(group),
                "wilson_low": low,
                "wilson_high": high,
                "median_steps": float(perfect["first_perfect_step"].median())
                if len(perfect)
                else None,
                "best_full_acc": float(group["full_acc"].max()),
                "median_full_acc": float(group["full_acc"].median()),
            }
        )
    reached = [w["d_hidden"] for w in widths if w["perfect"]]
    failed = [w["d_hidden"] for w in widths if w["perfect"] < w["models"]]
    above = [w["d_hidden"] for w in widths if w["d_hidden"] > max(failed, default=0)]
    return {
        "models": len(table),
        "perfect": int(table["perfect"].sum()),
        "smallest_perfect_width": min(reached, default=None),
        "all_perfect_from_width": min(above, default=None),
        "widths": widths,
    }
