"""Initial weights of the sweep's models, drawn as `nn.Linear` does."""

import math

import torch
from torch import Tensor

from bilinear.experiment.streams import generator


def initial_weights(
    p: int, d_hidden: int, seed: int, scale: float = 1.0, *, redraw: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """w_l (d, 2p), w_r (d, 2p), w_p (p, d), float32, uniform in ±scale/√fan_in.

    fan_in is 2p for w_l and w_r, d_hidden for w_p, as in `nn.Linear.reset_parameters`. Each
    `redraw` gives other numbers.
    """
    source = generator("init", p, d_hidden, seed, *([redraw] if redraw else []))

    def uniform(rows: int, fan_in: int) -> Tensor:
        bound = scale / math.sqrt(fan_in)
        return torch.empty(rows, fan_in).uniform_(-bound, bound, generator=source)

    weight = uniform(2 * d_hidden, 2 * p)
    w_p = uniform(p, d_hidden)
    return weight[:d_hidden], weight[d_hidden:], w_p
