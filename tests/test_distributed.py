"""Two ranks on the CPU: data parallel and fully sharded training equal one process."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from bilinear import Bilinear, BilinearMLP, fuse, reference
from bilinear.layer import matmuls

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo"),
]
RANKS = 2


def model() -> nn.Sequential:
    torch.manual_seed(0)
    pair = reference.Model(reference.ModelConfig(4, 6))
    fuse(pair)
    first = BilinearMLP(10, 6, 8, bias=True, recompute=True)
    return nn.Sequential(first, nn.LayerNorm(8), pair, nn.LayerNorm(4), Bilinear(4, 3))


def batch() -> Tensor:
    return torch.randn(8, 10, generator=torch.Generator().manual_seed(1))


def train(net: nn.Module, x: Tensor, steps: int = 3) -> list[Tensor]:
    """Weights after some steps, whole."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        (net(x) - 1).square().mean().backward()
        optimizer.step()
    return [(p.full_tensor() if isinstance(p, DTensor) else p).detach() for p in net.parameters()]


def wrapped(how: str) -> nn.Module:
    net = model()
    if how == "ddp":
        return DistributedDataParallel(net)
    mesh = init_device_mesh("cpu", (RANKS,))
    for part in net.children():
        fully_shard(part, mesh=mesh)
    fully_shard(net, mesh=mesh)
    assert all(isinstance(p, DTensor) for p in net.parameters())
    return net


def work(rank: int, rendezvous: str, results: str) -> None:
    torch.set_num_threads(1)
    matmuls.SMALL = 0
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=RANKS)
    mine = batch().chunk(RANKS)[rank]
    weights = {how: train(wrapped(how), mine) for how in ("ddp", "fully_shard")}
    if rank == 0:
        torch.save(weights, results)
    dist.destroy_process_group()


def test_two_ranks_train_as_one(tmp_path: Path) -> None:
    want = train(model(), batch())
    moved = [(a - b).norm() for a, b in zip(want, model().parameters(), strict=True)]
    assert min(moved) > 1e-4
    results = tmp_path / "weights.pt"
    mp.spawn(work, (f"file://{tmp_path}/rendezvous", str(results)), nprocs=RANKS)
    for how, got in torch.load(results, weights_only=True).items():
        torch.testing.assert_close(got, want, msg=lambda text, how=how: f"{how}: {text}")
