"""Adapters to other packages' fused layers, tested on stand-ins with the same signatures."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.measure import layer_ways, peers

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class _SiLUMul(torch.autograd.Function):
    """Requires contiguous inputs, as Liger-Kernel's operator does."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        assert a.is_contiguous()
        assert b.is_contiguous()
        ctx.save_for_backward(a, b)
        return F.silu(a) * b

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return grad_outputs[0] * b, grad_outputs[0] * F.silu(a)


class _LigerMLP(torch.autograd.Function):
    """Overwrites saved tensors in backward, and returns as many columns as x has."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w_l: Tensor, w_r: Tensor, w_p: Tensor) -> Tensor:
        left, right = F.linear(x, w_l), F.linear(x, w_r)
        ctx.save_for_backward(x, w_l, w_r, w_p, left, right)
        return F.linear(F.silu(left) * right, w_p)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, ...]:
        x, w_l, w_r, w_p, left, right = ctx.saved_tensors
        (dout,) = grad_outputs
        dh = dout @ w_p
        d_w_p = dout.T @ (F.silu(left) * right)
        left.copy_(dh * right)
        right.copy_(dh * right)
        return left @ w_l + right @ w_r, left.T @ x, right.T @ x, d_w_p


def _mlp_func(
    x: Tensor, weight1: Tensor, weight2: Tensor, activation: str, concat_layout: bool = False
) -> Tensor:
    assert activation == "reglu"
    pre = F.linear(x, weight1)
    gate, up = pre.chunk(2, -1) if concat_layout else (pre[..., ::2], pre[..., 1::2])
    return F.linear(F.relu(gate) * up, weight2)


STAND_INS = {
    "liger": {"LigerSiLUMulFunction": _SiLUMul},
    "liger mlp": {"LigerMLPFunction": _LigerMLP},
    "quack": {"mlp_func": _mlp_func},
}


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, contents in STAND_INS.items():
        path = peers.PACKAGES[name][0].split(".")
        for i in range(1, len(path) + 1):
            parent = ".".join(path[:i])
            if i == len(path) or parent not in sys.modules:
                monkeypatch.setitem(sys.modules, parent, ModuleType(path[i - 1]))
        vars(sys.modules[peers.PACKAGES[name][0]]).update(contents)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(
    ("name", "op"), [("liger", "layer"), ("liger", "mlp"), ("liger mlp", "mlp"), ("quack", "mlp")]
)
def test_adapter_computes_the_gate_it_names(name: str, op: str) -> None:
    m, d_in, d = 5, 7, 3
    inputs = layer_ways.inputs(op, (m, d_in, d))
    x, weight, *w_p = (tensor.detach() for tensor in inputs)
    h = peers.GATES[name](x @ weight[:d].T) * (x @ weight[d:].T)
    f = peers.make(name, op, CPU)
    torch.testing.assert_close(f(*inputs), h @ w_p[0].T if w_p else h)
    peers.verify(name, f, inputs)
    gradients = torch.autograd.grad(f(*inputs).sum(), inputs)
    assert [g.shape for g in gradients] == [tensor.shape for tensor in inputs]
    with pytest.raises(ValueError, match="away"):
        peers.verify(name, peers.EAGER[op], inputs)


@pytest.mark.usefixtures("packages")
def test_a_peer_that_computes_something_else_is_not_timed() -> None:
    vars(sys.modules["quack.mlp"])["mlp_func"] = lambda x, w, w_p, **options: x
    refused: dict[str, str] = {}
    ways = ("fused", "eager", "quack", "liger mlp")
    made = layer_ways.contestants(
        "mlp", (5, 6, 4), ways, "forward and backward", sets=2, refused=refused
    )
    assert set(made) == {"fused", "eager", "liger mlp"}
    assert "quack" in refused["quack"]
    for call in made.values():
        assert len(call()) == 3  # type: ignore[arg-type]


@pytest.mark.usefixtures("packages")
def test_liger_mlp_gives_as_many_columns_as_it_takes() -> None:
    refused: dict[str, str] = {}
    ways = ("eager", "liger mlp")
    made = layer_ways.contestants("mlp", (5, 6, 4), ways, "forward", d_out=3, refused=refused)
    assert set(made) == {"eager"}
    assert "d_out" in refused["liger mlp"]


def test_reasons_name_what_is_missing() -> None:
    half = torch.bfloat16
    assert peers.absent("eager", "layer", CPU) == ""
    for name in ("matmul+mul", *peers.PACKAGES):
        assert "CUDA device" in peers.absent(name, "mlp", CPU, half)
    assert "projection" in peers.absent("liger mlp", "layer", CUDA, half)
    assert "16 bits" in peers.absent("quack", "mlp", CUDA)


@pytest.mark.parametrize("name", peers.PACKAGES)
def test_a_package_that_cannot_be_imported_is_a_reason(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = peers.PACKAGES[name][0]
    monkeypatch.setitem(sys.modules, module.split(".")[0], None)
    monkeypatch.setitem(sys.modules, module, None)
    assert module in peers.absent(name, "mlp", CUDA, torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("op", peers.OPS)
@pytest.mark.parametrize("name", ["matmul+mul", *peers.PACKAGES])
def test_peers_on_a_gpu(name: str, op: str) -> None:
    if reason := peers.absent(name, op, CUDA, torch.bfloat16):
        pytest.skip(reason)
    ways = ("eager", name)
    for call in layer_ways.contestants(
        op, (64, 128, 64), ways, "forward and backward", torch.bfloat16, "cuda"
    ).values():
        call()


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled for CUDA here")
def test_product_by_one_kernel_each_way() -> None:
    pytest.importorskip("triton")
    for op in peers.OPS:
        inputs = layer_ways.inputs(op, (5, 7, 3))
        results = []
        for name in ("matmul+mul", "eager"):
            out = peers.make(name, op, CPU)(*inputs)
            results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got, want)
