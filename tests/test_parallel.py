"""A transformer of bilinear blocks trains on four ranks as it does in one process."""

import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from bilinear import Bilinear, BilinearMLP
from bilinear.layer import matmuls, native, select
from bilinear.parallel import PairParallel, ShardedBilinearMLP, plan

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo"),
]
RANKS = 4
STEPS = 20
VOCABULARY, WIDTH, HIDDEN, LENGTH = 11, 6, 12, 5
WHOLE = StateDictOptions(full_state_dict=True)


class Block(nn.Module):
    """Single-head attention, then a `BilinearMLP`."""

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.mlp = BilinearMLP(WIDTH, HIDDEN, WIDTH, bias=True)
        self.checkpointed = checkpointed

    def inner(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        x = x + (q @ k.mT).softmax(-1) @ v
        out: Tensor = x + self.mlp(self.norm(x))
        return out

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpointed:
            out: Tensor = checkpoint(self.inner, x, use_reentrant=False)
            return out
        return self.inner(x)


def transformer(checkpointed: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(VOCABULARY, WIDTH),
        Block(checkpointed),
        Block(checkpointed),
        Bilinear(WIDTH, VOCABULARY + 1, bias=True),
    ).double()


def batch() -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(VOCABULARY, (8, LENGTH + 1), generator=draw)


def train(model: nn.Module, tokens: Tensor, dp: DeviceMesh | None = None) -> list[float]:
    """Next-token losses of some steps, averaged over the data parallel ranks."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        loss = loss.detach().clone()
        if dp is not None:
            dist.all_reduce(loss, op=dist.ReduceOp.SUM, group=dp.get_group())
            loss /= dp.size()
        losses.append(loss.item())
    return losses


def ddp(dp: DeviceMesh, tp: DeviceMesh, tokens: Tensor) -> tuple[nn.Module, list[float]]:
    model = transformer()
    wrapped = DistributedDataParallel(model, process_group=dp.get_group())
    return model, train(wrapped, share(tokens, dp), dp)


def sharded(dp: DeviceMesh, tp: DeviceMesh, tokens: Tensor) -> tuple[nn.Module, list[float]]:
    model = fully_sharded(transformer(), dp)
    return model, train(model, share(tokens, dp), dp)


def tensor_parallel(
    dp: DeviceMesh, tp: DeviceMesh, tokens: Tensor
) -> tuple[nn.Module, list[float]]:
    model = transformer()
    parallelize_module(model, tp, plan(model))
    return model, train(model, tokens)


def checkpointed(dp: DeviceMesh, tp: DeviceMesh, tokens: Tensor) -> tuple[nn.Module, list[float]]:
    model = transformer(checkpointed=True)
    parallelize_module(model, tp, plan(model))
    return model, train(model, tokens)


def compiled(dp: DeviceMesh, tp: DeviceMesh, tokens: Tensor) -> tuple[nn.Module, list[float]]:
    model = transformer()
    parallelize_module(model, tp, plan(model))
    for name in ("1", "2"):
        model.get_submodule(name).compile(backend="aot_eager", fullgraph=True)
    return model, train(model, tokens)


def both(dp: DeviceMesh, tp: DeviceMesh, tokens: Tensor) -> tuple[nn.Module, list[float]]:
    model = transformer()
    parallelize_module(model, tp, plan(model))
    fully_sharded(model, dp)
    return model, train(model, share(tokens, dp), dp)


Case = Callable[[DeviceMesh, DeviceMesh, Tensor], tuple[nn.Module, list[float]]]
# Two ranks of data parallelism and two of tensor parallelism, unless the name says otherwise.
CASES: dict[str, Case] = {
    "ddp": ddp,
    "fully_shard": sharded,
    "tensor parallel": tensor_parallel,
    "tensor parallel, four": tensor_parallel,
    "checkpointed, four": checkpointed,
    "compiled": compiled,
    "fully_shard and tensor parallel": both,
    "fully_shard over four and tensor parallel over one": both,
}


def fully_sharded(model: nn.Sequential, dp: DeviceMesh) -> nn.Module:
    for part in model.children():
        fully_shard(part, mesh=dp)
    return fully_shard(model, mesh=dp)


def share(tokens: Tensor, dp: DeviceMesh) -> Tensor:
    return tokens.chunk(dp.size())[dp.get_local_rank()]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    matmuls.SMALL = 0
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS
    )
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    four = init_device_mesh("cpu", (RANKS,), mesh_dim_names=("tp",))
    # More ranks than the two halves that `fully_shard` splits a packed weight into.
    uneven = init_device_mesh("cpu", (RANKS, 1), mesh_dim_names=("dp", "tp"))
    results: dict[str, Any] = {}
    for name, case in CASES.items():
        grid = uneven if "over four" in name else mesh
        tp = four if name.endswith("four") else grid["tp"]
        model, losses = case(grid["dp"], tp, batch())
        results[name] = losses, get_model_state_dict(model, options=WHOLE)
        if name == "tensor parallel, four":
            local_calls(model)
            saved(model, four, folder)
    layouts(four)
    drawn_anew(four)
    errors(mesh)
    if rank == 0:
        torch.save(results, f"{folder}/results.pt")
    dist.destroy_process_group()


def local_calls(model: nn.Module) -> None:
    """Each rank runs the ordinary fused path on its share of the products."""
    shapes = []

    def watched(forward: Callable[..., Any]) -> Callable[..., Any]:
        def seen(
            call: Any, x: Tensor, weight: Tensor, bias: Any, w_p: Any, *rest: Any, **how: Any
        ) -> Any:
            if w_p is not None:
                shapes.append((tuple(weight.shape), tuple(w_p.shape), type(weight)))
            return forward(call, x, weight, bias, w_p, *rest, **how)

        return seen

    with pytest.MonkeyPatch.context() as patch:
        for module in (native, matmuls):
            patch.setattr(module, "forward", watched(module.forward))
        select._chosen.clear()  # what was made ready before holds the functions themselves
        model(batch()[:, :-1])
    select._chosen.clear()
    mine = HIDDEN // RANKS
    assert shapes == [((2 * mine, WIDTH), (WIDTH, mine), Tensor)] * 2


def saved(model: nn.Module, mesh: DeviceMesh, folder: str) -> None:
    """Loading whole tensors or a sharded state restores the weights; a checkpoint is saved."""
    want = get_model_state_dict(model, options=WHOLE)
    for state, assign in ((want, False), (model.state_dict(), False), (model.state_dict(), True)):
        other = transformer()
        parallelize_module(other, mesh, plan(other))
        for parameter in other.parameters():
            nn.init.constant_(parameter, torch.nan)
        other.load_state_dict(state, assign=assign)
        for name, got in other.state_dict().items():
            torch.testing.assert_close(whole(got), want[name], rtol=0, atol=0)
        assert other[1].mlp.bi_linear.weight.shape == (2, HIDDEN, WIDTH)
    dcp.save(model.state_dict(), checkpoint_id=f"{folder}/checkpoint")


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def layouts(mesh: DeviceMesh) -> None:
    """Inputs and outputs sharded over the sequence; a `Bilinear` with a row-wise linear after."""
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(3, 2 * RANKS, WIDTH, generator=draw, requires_grad=True)
    torch.manual_seed(3)
    one: nn.Module = BilinearMLP(WIDTH, HIDDEN, 7, bias=True, gate="silu")
    mlp = parallelize_module(
        deepcopy(one), mesh, PairParallel(input_layouts=Shard(1), output_layouts=Shard(1))
    )
    assert isinstance(mlp, ShardedBilinearMLP)
    compare(one, mlp, x, mesh)
    pair = nn.Sequential(Bilinear(WIDTH, HIDDEN, gate="gelu"), nn.Linear(HIDDEN, 7))
    styles = {
        "0": PairParallel(input_layouts=Shard(1)),
        "1": RowwiseParallel(output_layouts=Shard(1)),
    }
    compare(pair, parallelize_module(deepcopy(pair), mesh, styles), x, mesh)
    kept = parallelize_module(deepcopy(one), mesh, PairParallel(use_local_output=False))
    out = kept(x)
    assert isinstance(out, DTensor)
    assert out.placements == (Replicate(),)
    torch.testing.assert_close(out.to_local(), one(x))
    assert kept.w_l.shape == (HIDDEN, WIDTH)
    torch.testing.assert_close(whole(kept.w_r), one.w_r)
    kept.bi_linear.register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match="hooks: expected none on the inner modules"):
        kept(x)


def compare(one: nn.Module, sharded: nn.Module, x: Tensor, mesh: DeviceMesh) -> None:
    mine = x.detach().chunk(RANKS, 1)[mesh.get_local_rank()].requires_grad_()
    want, got = one(x), sharded(mine)
    torch.testing.assert_close(got, want.chunk(RANKS, 1)[mesh.get_local_rank()])
    x.grad = None
    (want - 1).square().sum().backward()
    (got - 1).square().sum().backward()
    torch.testing.assert_close(mine.grad, x.grad.chunk(RANKS, 1)[mesh.get_local_rank()])
    for a, b in zip(sharded.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(whole(a.grad).reshape(b.shape), b.grad)


def drawn_anew(mesh: DeviceMesh) -> None:
    """A layer made without storage is initialised as `nn.Linear` is, by its inputs."""
    layer = BilinearMLP(WIDTH, 400, 4, bias=True, device="meta")
    parallelize_module(layer, mesh, PairParallel()).to_empty(device="cpu")
    layer.reset_parameters()
    for drawn in (layer.w_l, layer.w_r, layer.bi_linear.bias):
        assert 0.9 < whole(drawn).abs().max() * WIDTH**0.5 <= 1


def errors(mesh: DeviceMesh) -> None:
    tp = mesh["tp"]
    with pytest.raises(ValueError, match="d_hidden: expected a multiple of the 2 ranks, got 5"):
        parallelize_module(BilinearMLP(3, 5, 2), tp, PairParallel())
    with pytest.raises(ValueError, match="d_out: expected a multiple of the 2 ranks, got 3"):
        parallelize_module(Bilinear(3, 3), tp, PairParallel())
    with pytest.raises(TypeError, match="module: expected Bilinear or BilinearMLP, got Linear"):
        parallelize_module(nn.Linear(3, 4), tp, PairParallel())
    with pytest.raises(ValueError, match="device_mesh: expected one dimension, got 2"):
        parallelize_module(Bilinear(3, 4), mesh, PairParallel())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "OMP_NUM_THREADS", "1")
        mp.spawn(work, (str(folder),), nprocs=RANKS)
    return folder


@pytest.fixture(scope="module")
def alone() -> tuple[nn.Module, list[float]]:
    model = transformer()
    return model, train(model, batch())


@pytest.mark.parametrize("case", CASES)
def test_ranks_train_as_one(case: str, folder: Path, alone: tuple[nn.Module, list[float]]) -> None:
    model, losses = alone
    assert losses[-1] < losses[0] - 0.1
    start = transformer().parameters()
    moved = [(a - b).norm() for a, b in zip(model.parameters(), start, strict=True)]
    assert min(moved) > 1e-3
    got_losses, state = torch.load(folder / "results.pt", weights_only=True)[case]
    torch.testing.assert_close(got_losses, losses, rtol=1e-9, atol=1e-9)
    want = model.state_dict()
    assert list(state) == list(want)
    torch.testing.assert_close(state, dict(want), rtol=1e-8, atol=1e-9)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_a_sharded_checkpoint_loads_in_one_process(
    folder: Path, alone: tuple[nn.Module, list[float]]
) -> None:
    state = transformer().state_dict()
    dcp.load(state, checkpoint_id=folder / "checkpoint", no_dist=True)
    torch.testing.assert_close(state, alone[0].state_dict(), rtol=1e-8, atol=1e-9)


def test_docs_show_what_is_trained_here() -> None:
    text = (Path(__file__).parents[1] / "docs" / "layer.md").read_text(encoding="utf-8")
    block = next(part for part in text.split("```") if "bilinear.parallel" in part)
    names: dict[str, Any] = {"model": transformer(), "mesh": None}
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "torch.distributed.tensor.parallel.parallelize_module",
            lambda *given: calls.append(given),
        )
        exec(block.removeprefix("python"), names)
    ((model, _, styles),) = calls
    assert model is names["model"]
    assert list(styles) == ["1.mlp", "2.mlp", "3"]


def test_plan_names_the_layers() -> None:
    model = nn.Sequential(transformer(), nn.Linear(2, 2))
    assert list(plan(model)) == ["0.1.mlp", "0.2.mlp", "0.3"]
    assert list(plan(BilinearMLP(2, 4, 2))) == [""]
    with pytest.raises(ValueError, match="expected a Bilinear or a BilinearMLP in it, got Linear"):
        plan(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got str"):
        plan("model")  # type: ignore[arg-type]
