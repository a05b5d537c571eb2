"""Two ranks on the CPU: data parallel and fully sharded training equal one process."""

import gc
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

from bilinear import Bilinear, BilinearMLP, explain, fuse, reference, unfuse
from bilinear.layer import fused_modules, matmuls, two_weights

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
    """Unsharded weights after some steps."""
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


class Gated(nn.Module):
    """The MLP of Llama-family models."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(10, 6, bias=False), nn.Linear(10, 6, bias=False)
        self.down_proj, self.act_fn = nn.Linear(6, 10, bias=False), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def gated() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Gated(), nn.LayerNorm(10), Gated()).double()


def outcome(net: nn.Module, x: Tensor) -> list[Tensor]:
    """The output and all gradients, unsharded."""
    net.zero_grad()
    out = net(x)
    out.square().mean().backward()
    grads = [p.grad for p in net.parameters()]
    whole = [g.full_tensor() if isinstance(g, DTensor) else g for g in grads]
    if dist.is_initialized():
        parts = [torch.empty_like(out) for _ in range(RANKS)]
        dist.all_gather(parts, out.detach())
        out = torch.cat(parts)
    return [out.detach(), *whole]


def shard(net: nn.Sequential, each_linear: bool) -> None:
    mesh = init_device_mesh("cpu", (RANKS,))
    for part in net:
        for linear in part.children() if each_linear else ():
            if isinstance(linear, nn.Linear):
                fully_shard(linear, mesh=mesh)
        fully_shard(part, mesh=mesh)
    fully_shard(net, mesh=mesh)
    assert all(isinstance(p, DTensor) for p in net.parameters())


def fuse_and_shard(rank: int, rendezvous: str, results: str) -> None:
    torch.set_num_threads(1)
    two_weights.FEW = 0
    calls: list[int] = []
    run = fused_modules.gated_mlp
    fused_modules.gated_mlp = lambda *args: (calls.append(1), run(*args))[1]
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=RANKS)
    mine = batch().double().chunk(RANKS)[rank]
    found = {}
    for each_linear in (False, True):

        def note(step: str, net: nn.Module, said: object = None) -> None:
            calls.clear()
            got = outcome(net, mine)
            of = f"{step}, {'linears' if each_linear else 'MLPs'}"  # noqa: B023
            told = "" if said is None else str(said)
            found[of] = (got, len(calls), f"{told}\n{explain(net)}")

        before = gated()
        fuse(before, strict=True)
        shard(before, each_linear)
        note("fused, then sharded", before)
        note("unfused after", before, unfuse(before))
        after = gated()
        shard(after, each_linear)
        note("sharded, then fused", after, fuse(after))
        note("unfused again", after, unfuse(after))
    if rank == 0:
        torch.save(found, results)
    del before, after
    gc.collect()  # ends their collectives before the process group
    dist.barrier()
    dist.destroy_process_group()


def test_fuse_beside_fully_sharded_parameters(tmp_path: Path) -> None:
    want = outcome(gated(), batch().double())
    results = tmp_path / "found.pt"
    mp.spawn(fuse_and_shard, (f"file://{tmp_path}/rendezvous", str(results)), nprocs=RANKS)
    found = torch.load(results, weights_only=True)
    for step, (got, _, _) in found.items():
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, msg=lambda text, step=step: f"{step}: {text}")
    ran = {step: calls for step, (_, calls, _) in found.items()}
    said = {step: told for step, (_, _, told) in found.items()}
    # With each MLP sharded as one, its weights are plain tensors during its call, and the fused
    # formula runs. With each linear sharded, they are plain during that linear's call alone.
    assert ran["fused, then sharded, MLPs"] == 2
    assert ran["fused, then sharded, linears"] == 0
    assert "is a FSDPLinear" in said["fused, then sharded, linears"]
    for kind in ("MLPs", "linears"):
        assert "was made after fuse" in said[f"unfused after, {kind}"]
        assert ran[f"sharded, then fused, {kind}"] == 0
        assert "kept 2" in said[f"sharded, then fused, {kind}"]
    assert "has a weight of type DTensor" in said["sharded, then fused, MLPs"]
