"""One-hot-pair training in plain PyTorch ops with hand-derived gradients, in any float dtype.

The CPU runs it where the compiled kernel is not built; in float64 it is the reference that the
fused kernels are tested against. Algebra as in `grid_cpu.c`; blocks of pairs keep the activations
in cache.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bilinear.kernels.grid_cpu import GridMetrics
from bilinear.kernels.shuffle import shuffled

_BLOCK = 1024


class TorchGridModel:
    """One model's weights, moments and pairs; the interface of `CpuGridModel`."""

    def __init__(
        self,
        w_l: Tensor,
        w_r: Tensor,
        w_p: Tensor,
        pairs: Tensor,
        n_train: int,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        batch: int = 0,
        shuffle_key: int = 0,
    ) -> None:
        """Start from w_l, w_r (d, 2p) and w_p (p, d); arithmetic is done in their dtype."""
        self._p = w_p.shape[0]
        self._halves = torch.stack([w_l.T, w_r.T]).contiguous()  # (2, 2p, d)
        self._w_p = w_p.clone()
        self._moments = [
            (torch.zeros_like(w), torch.zeros_like(w)) for w in (self._halves, self._w_p)
        ]
        self._pairs, self._n_train = pairs.long(), n_train
        self._share = self._w_p.new_zeros(self._p, self._p)  # of each pair in the mean loss
        self._share[tuple(self._pairs[:n_train].T)] = 1 / n_train
        self._betas, self._eps = betas, eps
        self._batch, self._shuffle_key = batch, shuffle_key
        self.steps_done = 0

    def steps(self, lr: Tensor, weight_decay: Tensor) -> None:
        """Take len(lr) AdamW steps, one value of `lr` and `weight_decay` for each."""
        for rate, decay in zip(lr.tolist(), weight_decay.tolist(), strict=True):
            if self._batch:
                gradients = self._batch_gradients(self._batch_of(self.steps_done))
            else:
                gradients = self._full_gradients()
            self.steps_done += 1
            self._adamw(gradients, rate, decay)

    def _batch_of(self, step: int) -> Tensor:
        epoch, i = divmod(step, self._n_train // self._batch)
        order = torch.from_numpy(shuffled(self._n_train, self._shuffle_key, epoch))
        return self._pairs[order[i * self._batch : (i + 1) * self._batch]]

    def _forward(self, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens (n, 2), l and r (2, n, d), h (n, d), logits (n, p)."""
        tokens = pairs + torch.tensor([0, self._p])
        preact = self._halves[:, tokens[:, 0]] + self._halves[:, tokens[:, 1]]
        h = preact[0] * preact[1]
        return tokens, preact, h, h @ self._w_p.T

    def _batch_gradients(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        d_halves = torch.zeros_like(self._halves)
        tokens, preact, h, logits = self._forward(pairs)
        g = _loss_gradient(logits, pairs.sum(1, keepdim=True) % self._p).div_(len(pairs))
        d_preact = (g @ self._w_p) * preact.flip(0)
        for column in (0, 1):
            d_halves.index_add_(1, tokens[:, column], d_preact)
        return d_halves, g.T @ h

    def _full_gradients(self) -> tuple[Tensor, Tensor]:
        """Walk the whole grid, some a's with all b's at a time: sums instead of scattered adds."""
        p, d = self._w_p.shape
        d_halves, d_w_p = torch.zeros_like(self._halves), torch.zeros_like(self._w_p)
        of_a, of_b = self._halves[:, :p], self._halves[:, p:]
        for some in torch.arange(p).split(max(1, _BLOCK // p)):
            preact = of_a[:, some, None] + of_b[:, None]  # (2, len(some), p, d)
            h = (preact[0] * preact[1]).view(-1, d)
            label = ((some[:, None] + torch.arange(p)) % p).view(-1, 1)
            g = _loss_gradient(h @ self._w_p.T, label).mul_(self._share[some].view(-1, 1))
            d_w_p.addmm_(g.T, h)
            d_preact = (g @ self._w_p).view(len(some), p, d) * preact.flip(0)
            d_halves[:, some] = d_preact.sum(2)
            d_halves[:, p:] += d_preact.sum(1)
        return d_halves, d_w_p

    def _adamw(self, gradients: tuple[Tensor, Tensor], lr: float, weight_decay: float) -> None:
        beta1, beta2 = self._betas
        step_size = lr / (1 - beta1**self.steps_done)
        root = (1 - beta2**self.steps_done) ** -0.5
        weights = (self._halves, self._w_p)
        for w, g, (m1, m2) in zip(weights, gradients, self._moments, strict=True):
            m1.mul_(beta1).add_(g, alpha=1 - beta1)
            m2.mul_(beta2).addcmul_(g, g, value=1 - beta2)
            w.mul_(1 - lr * weight_decay)
            w.addcdiv_(m1, m2.sqrt().mul_(root).add_(self._eps), value=-step_size)

    def evaluate(self) -> GridMetrics:
        """Evaluate the weights as they stand on all pairs."""
        losses, margins = [], []
        for block in self._pairs.split(_BLOCK):
            logits = self._forward(block)[-1]
            label = block.sum(1) % self._p
            losses.append(F.cross_entropy(logits, label, reduction="none").double())
            right = logits.gather(1, label[:, None])[:, 0]
            others = logits.scatter(1, label[:, None], -torch.inf).amax(1)
            margins.append(right - others)
        loss, margin = torch.cat(losses), torch.cat(margins)
        train, val = slice(None, self._n_train), slice(self._n_train, None)
        return GridMetrics(
            loss[train].mean().item(),
            loss[val].mean().item() if len(loss[val]) else float("nan"),
            int((margin[train] > 0).sum()),
            int((margin[val] > 0).sum()),
            margin.min().item(),
        )

    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """Copy the weights out: w_l (d, 2p), w_r (d, 2p), w_p (p, d)."""
        w_l, w_r = (half.T.contiguous() for half in self._halves)
        return w_l, w_r, self._w_p.clone()


def _loss_gradient(logits: Tensor, label: Tensor) -> Tensor:
    """Gradient of each row's cross-entropy, for labels (n, 1).

    p_label − 1 is taken as −Σ of the others, which does not cancel when the label is certain.
    """
    g = torch.softmax(logits, dim=1).scatter_(1, label, 0.0)
    return g.scatter_(1, label, -g.sum(1, keepdim=True))
