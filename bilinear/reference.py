"""The plain PyTorch model and training loop that everything else is checked and timed against.

Parameter names (`bi_linear.weight`, `projection.weight`) are the ones under which people have
trained models of this kind on disk; fused modules keep them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from bilinear.data import split_pairs
from bilinear.streams import stream_key


class Bilinear(nn.Linear):
    """h = (x W_lᵀ + b_l) ∘ (x W_rᵀ + b_r), with both halves in one `weight`, left half first.

    `weight` is (2·d_out, d_in); input (…, d_in), output (…, d_out).
    """

    def __init__(self, d_in: int, d_out: int, bias: bool = False) -> None:
        """Make a layer of d_out products over d_in inputs, initialised as `nn.Linear` is."""
        super().__init__(d_in, 2 * d_out, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """(…, d_in) → (…, d_out)."""
        left, right = super().forward(input).chunk(2, dim=-1)
        return left * right

    @property
    def w_l(self) -> Tensor:
        """Left weights, (d_out, d_in): a view of `weight`."""
        return self.weight.chunk(2, dim=0)[0]

    @property
    def w_r(self) -> Tensor:
        """Right weights, (d_out, d_in): a view of `weight`."""
        return self.weight.chunk(2, dim=0)[1]


@dataclass(frozen=True)
class ModelConfig:
    """Modulus p, hidden width d_hidden (the bottleneck dimension), whether layers have biases."""

    p: int
    d_hidden: int
    bias: bool = False


class Model(nn.Module):
    """Modular addition: onehot(a) ⊕ onehot(b), (…, 2p) → logits (…, p)."""

    def __init__(self, config: ModelConfig) -> None:
        """Make the bilinear layer (2p → d_hidden) and the projection (d_hidden → p)."""
        super().__init__()
        self.config = config
        self.bi_linear = Bilinear(2 * config.p, config.d_hidden, bias=config.bias)
        self.projection = nn.Linear(config.d_hidden, config.p, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(…, 2p) → (…, p)."""
        return self.projection(self.bi_linear(x))

    @property
    def w_l(self) -> Tensor:
        """Left weights, (d_hidden, 2p)."""
        return self.bi_linear.w_l

    @property
    def w_r(self) -> Tensor:
        """Right weights, (d_hidden, 2p)."""
        return self.bi_linear.w_r

    @property
    def w_p(self) -> Tensor:
        """Projection weights, (p, d_hidden)."""
        return self.projection.weight


@dataclass(frozen=True)
class NotebookResult:
    """What one width of the notebook's loop ends with: accuracies are those of the last epoch."""

    model: Model
    epochs: int
    steps: int
    train_loss: list[float]
    val_acc: list[float]


def modular_addition(p: int) -> TensorDataset:
    """All p² pairs as one-hot rows (p², 2p) float32, and their sums mod p (p²,) int64."""
    a, b = torch.meshgrid(torch.arange(p), torch.arange(p), indexing="ij")
    a, b = a.flatten(), b.flatten()
    inputs = torch.cat([F.one_hot(a, p), F.one_hot(b, p)], dim=1).float()
    return TensorDataset(inputs, (a + b) % p)


def train_notebook(
    config: ModelConfig,
    *,
    seed: int = 0,
    train_frac: float = 0.75,
    batch_size: int = 64,
    epochs: int = 600,
    lr: float = 3e-3,
    weight_decay: float = 3e-4,
    device: str = "cpu",
    on_epoch: Callable[[int, float], None] | None = None,
) -> NotebookResult:
    """Train one width the notebook's way: DataLoader, AdamW, stop at 100 % validation accuracy.

    Where the notebook's split and init were unseeded, both follow from `seed` here, the split being
    the one the fused sweep uses. `on_epoch(epoch, val_acc)` is called at the end of every epoch.
    """
    torch.manual_seed(stream_key("notebook", config.p, config.d_hidden, seed) >> 1)
    train_set, val_set = _datasets(config.p, train_frac, seed)
    train_loader = DataLoader(train_set, batch_size=batch_size, shuffle=True, drop_last=True)
    val_loader = DataLoader(val_set, batch_size=len(val_set))

    model = Model(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    train_loss: list[float] = []
    val_acc: list[float] = []
    for epoch in range(epochs):
        train_loss.append(_train_epoch(model, train_loader, optimizer, device))
        val_acc.append(_accuracy(model, val_loader, device))
        if on_epoch is not None:
            on_epoch(epoch, val_acc[-1])
        if val_acc[-1] == 1.0:
            break
    n_epochs = len(val_acc)
    return NotebookResult(model, n_epochs, n_epochs * len(train_loader), train_loss, val_acc)


def _datasets(p: int, train_frac: float, seed: int) -> tuple[Subset, Subset]:
    data, split = modular_addition(p), split_pairs(p, train_frac, seed)
    rows = (split.pairs[:, 0] * p + split.pairs[:, 1]).tolist()
    return Subset(data, rows[: split.n_train]), Subset(data, rows[split.n_train :])


def _train_epoch(
    model: Model, loader: DataLoader, optimizer: torch.optim.Optimizer, device: str
) -> float:
    model.train()
    losses = []
    for x, y in loader:
        x, y = x.to(device), y.to(device)
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def _accuracy(model: Model, loader: DataLoader, device: str) -> float:
    model.eval()
    correct = total = 0
    for x, y in loader:
        predictions = model(x.to(device)).argmax(dim=-1)
        correct += int((predictions == y.to(device)).sum())
        total += len(y)
    return correct / total
