"""Plain PyTorch that trains many small models at once: ensembles, full batch.

All models of an ensemble have one shape, so models of several widths are padded to the widest.
torch's AdamW updates the stacked weights. On a GPU one CUDA graph holds the steps of a call, and
AdamW is fused and capturable.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bilinear.experiment.initial_weights import initial_weights
from bilinear.experiment.record import Job
from bilinear.experiment.task import split_pairs

KINDS = ("vmap", "bmm")
_TRAIN_FRAC = 0.75


def stacked(p: int, jobs: Sequence[Job], device: torch.device | str = "cpu") -> list[Tensor]:
    """w_l, w_r (models, d, 2p), w_p (models, p, d): d the largest width, narrower models padded."""
    d = max(job.d_hidden for job in jobs)
    padded = [torch.zeros(len(jobs), *s, device=device) for s in ((d, 2 * p), (d, 2 * p), (p, d))]
    for i, job in enumerate(jobs):
        for target, w in zip(padded, initial_weights(p, *job), strict=True):
            target[i, : w.shape[0], : w.shape[1]] = w
    return padded


def ensemble(
    kind: str, p: int, jobs: Sequence[Job], steps: int, device: torch.device | str = "cpu"
) -> Callable[[], object]:
    """A call that takes `steps` training steps of all models; `kind` is "vmap" or "bmm".

    "vmap": `torch.func.grad` of one model's loss, mapped. "bmm": autograd through batched matmuls.
    "vmap" reads columns of w_l and w_r, and "bmm" multiplies by one-hot rows: the faster form for
    each.
    """
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    weights = [w.requires_grad_() for w in stacked(p, jobs, device)]
    split = split_pairs(p, _TRAIN_FRAC, 0)
    a, b = (column.to(device) for column in split.pairs[: split.n_train].long().T)
    optimizer = torch.optim.AdamW(
        weights, lr=1e-2, weight_decay=1e-2, capturable=on_gpu, fused=on_gpu or None
    )
    gradient = {"vmap": _vmap, "bmm": _bmm}[kind](p, len(jobs), a, b)

    def run() -> None:
        for _ in range(steps):
            for w, g in zip(weights, gradient(*weights), strict=True):
                w.grad = g
            optimizer.step()

    return captured(run) if on_gpu else run


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """Capture `run` in a CUDA graph and return its replay."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _vmap(p: int, models: int, a: Tensor, b: Tensor) -> Callable[..., Sequence[Tensor]]:
    def loss(w_l: Tensor, w_r: Tensor, w_p: Tensor) -> Tensor:
        h = (w_l.T[a] + w_l.T[p + b]) * (w_r.T[a] + w_r.T[p + b])
        return F.cross_entropy(h @ w_p.T, (a + b) % p)

    mapped = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))
    return lambda *weights: mapped(*(w.detach() for w in weights))


def _bmm(p: int, models: int, a: Tensor, b: Tensor) -> Callable[..., Sequence[Tensor]]:
    x = torch.cat([F.one_hot(a, p), F.one_hot(b, p)], 1).float()
    label = ((a + b) % p).repeat(models)

    def gradient(*weights: Tensor) -> Sequence[Tensor]:
        w_l, w_r, w_p = weights
        logits = torch.bmm((x @ w_l.mT) * (x @ w_r.mT), w_p.mT)
        loss = F.cross_entropy(logits.flatten(0, 1), label, reduction="sum") / len(a)
        return torch.autograd.grad(loss, weights)

    return gradient
