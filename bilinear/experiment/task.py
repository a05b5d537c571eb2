"""Modular addition as pairs of tokens, split into a training and a validation set."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

from bilinear.experiment.streams import generator


@dataclass(frozen=True)
class Split:
    """All p² pairs (a, b), int32 (p², 2): the first `n_train` are trained on, the rest validate.

    Each part is sorted by a, then b, so that the order depends on the split alone.
    """

    p: int
    pairs: Tensor
    n_train: int

    @property
    def n_val(self) -> int:
        """Number of validation pairs."""
        return len(self.pairs) - self.n_train

    @property
    def train_mask(self) -> Tensor:
        """The grid of pairs, bool (p, p), True where trained on."""
        mask = torch.zeros(self.p, self.p, dtype=torch.bool)
        a, b = self.pairs[: self.n_train].long().T
        mask[a, b] = True
        return mask


def n_train_pairs(p: int, train_frac: float) -> int:
    """How many of the p² pairs are trained on: rounded down, as in the notebook."""
    return int(train_frac * p * p)


def split_pairs(p: int, train_frac: float, seed: int) -> Split:
    """Draw which pairs are trained on; the same for every width of a seed."""
    n_train = n_train_pairs(p, train_frac)
    order = torch.randperm(p * p, generator=generator("split", p, seed))
    flat = torch.cat([order[:n_train].sort().values, order[n_train:].sort().values])
    return Split(p, torch.stack([flat // p, flat % p], dim=1).to(torch.int32), n_train)


def modular_addition(p: int) -> TensorDataset:
    """All p² pairs as one-hot rows (p², 2p) float32, and their sums mod p (p²,) int64."""
    a, b = torch.meshgrid(torch.arange(p), torch.arange(p), indexing="ij")
    a, b = a.flatten(), b.flatten()
    inputs = torch.cat([F.one_hot(a, p), F.one_hot(b, p)], dim=1).float()
    return TensorDataset(inputs, (a + b) % p)
