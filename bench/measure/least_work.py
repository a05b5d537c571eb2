"""The least work a task needs: FLOP of its algebra, and bytes that must be read or written.

Bytes count every input read once and every output written once, for forward and backward each, and
no tensors saved between the two. No implementation moves fewer bytes; one that saves nothing must
recompute, which costs more FLOP than are counted. Exponentials are not counted. So the time at the
roofs is a lower bound that no implementation reaches.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from bilinear.experiment.config import SweepConfig
from bilinear.experiment.cost import evaluation_flop, step_flop


@dataclass(frozen=True)
class Work:
    """FLOP and bytes of one call."""

    flop: float
    moved: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flop + other.flop, self.moved + other.moved)

    def __mul__(self, times: float) -> "Work":
        return Work(self.flop * times, self.moved * times)


def forward(m: int, d_in: int, d: int, d_out: int | None, itemsize: int = 4) -> Work:
    """Layer (d_out None) or MLP: two matmuls, their elementwise product, the projection."""
    weights = 2 * d * d_in + (d_out or 0) * d
    flop = 4 * m * d_in * d + m * d + 2 * m * d * (d_out or 0)
    return Work(flop, itemsize * (m * d_in + weights + m * (d_out or d)))


def forward_and_backward(m: int, d_in: int, d: int, d_out: int | None, itemsize: int = 4) -> Work:
    """Adds the gradients of x and weights: two matmuls for each forward one, two products for h."""
    weights = 2 * d * d_in + (d_out or 0) * d
    flop = 8 * m * d_in * d + 2 * m * d + 4 * m * d * (d_out or 0)
    # Read: x, weights, the output's gradient. Written: the gradients of x and of the weights.
    backward = Work(flop, itemsize * (2 * m * d_in + 2 * weights + m * (d_out or d)))
    return forward(m, d_in, d, d_out, itemsize) + backward


DIRECTIONS = {"forward": forward, "forward and backward": forward_and_backward}


def steps(config: SweepConfig, widths: Iterable[int], n: int = 1) -> Work:
    """n training steps of models of these widths: weights and both moments read and written."""
    widths = list(widths)
    flop = sum(step_flop(config, d) for d in widths)
    return Work(flop, 3 * 2 * 4 * 5 * config.p * sum(widths)) * n


def evaluations(config: SweepConfig, widths: Iterable[int], n: float) -> Work:
    """n evaluations of each model on all p² pairs: weights read."""
    widths = list(widths)
    flop = sum(evaluation_flop(config, d) for d in widths)
    return Work(flop, 4 * 5 * config.p * sum(widths)) * n
