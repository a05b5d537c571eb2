"""The notebook's training loop in plain PyTorch: the sweep is tested and timed against it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Subset

from bilinear.experiment.streams import stream_key
from bilinear.experiment.task import modular_addition, split_pairs
from bilinear.reference import Model, ModelConfig


@dataclass(frozen=True)
class NotebookResult:
    """A trained model; its mean training loss and validation accuracy after each epoch."""

    model: Model
    epochs: int
    steps: int
    train_loss: list[float]
    val_acc: list[float]


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
    """Train one width as the notebook does: DataLoader, AdamW, stop at 100 % validation accuracy.

    The notebook's split and initial weights were unseeded; here both follow from `seed`, and the
    split is that of the fused sweep. `on_epoch(epoch, val_acc)` is called after every epoch.
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
