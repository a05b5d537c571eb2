"""fuse changes what runs, never what is computed nor the Parameters; unfuse undoes it."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bilinear import Bilinear, fuse, reference, unfuse
from bilinear.layer.fused_modules import FusedBilinear, FusedMLP, FusedPair


@pytest.fixture(autouse=True)
def _function_path(paths: Callable[..., None]) -> None:
    paths(small=0, few=0)


class LlamaMLP(nn.Module):
    """The gated MLP of Llama-family models, with their names."""

    def __init__(
        self, d: int, d_hidden: int, act_fn: Callable[[Tensor], Tensor], bias: bool = False
    ):
        super().__init__()
        self.gate_proj = nn.Linear(d, d_hidden, bias=bias)
        self.up_proj = nn.Linear(d, d_hidden, bias=bias)
        self.down_proj = nn.Linear(d_hidden, d, bias=bias)
        self.act_fn = act_fn

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class PackedMLP(nn.Module):
    def __init__(self, d: int, d_hidden: int):
        super().__init__()
        self.gate_up_proj = nn.Linear(d, 2 * d_hidden, bias=False)
        self.down_proj = nn.Linear(d_hidden, d, bias=False)
        self.activation_fn = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(up * self.activation_fn(gate))


class Dropped(LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5, self.training)


class NotebookBilinear(nn.Linear):
    """A copy of the reference's layer, as people paste it."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = super().forward(x).chunk(2, dim=-1)
        return left * right


class Attention(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))


class Transformer(nn.Module):
    def __init__(self, vocabulary: int = 11, d: int = 16, layers: int = 2):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, d)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"attn": Attention(d), "mlp": LlamaMLP(d, 24, nn.Identity())})
            for _ in range(layers)
        )
        self.head = nn.Linear(d, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = x + block["attn"](F.layer_norm(x, x.shape[-1:]))
            x = x + block["mlp"](F.layer_norm(x, x.shape[-1:]))
        return self.head(x)


def fusable() -> dict[str, tuple[nn.Module, type[nn.Module], int]]:
    """Model, the class its one fused part gets, and the width of its input."""
    return {
        "layer": (reference.Bilinear(8, 5, bias=True), FusedBilinear, 8),
        "pasted layer": (NotebookBilinear(8, 10), FusedBilinear, 8),
        "pair": (reference.Model(reference.ModelConfig(4, 5, True)), FusedPair, 8),
        "packed": (PackedMLP(8, 12), FusedPair, 8),
        "gated": (LlamaMLP(8, 12, nn.Identity()), FusedMLP, 8),
        "gated, biases": (LlamaMLP(8, 12, nn.Identity(), bias=True), FusedMLP, 8),
        "gated, float64": (LlamaMLP(8, 12, nn.Identity()).double(), FusedMLP, 8),
    }


@pytest.mark.parametrize("kind", fusable())
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_fused_and_back(kind: str, recompute: bool, inside: bool) -> None:
    part, fused, width = fusable()[kind]
    model = nn.Sequential(nn.Identity(), part) if inside else part
    x = torch.randn(2, 3, width, dtype=next(model.parameters()).dtype, requires_grad=True)
    state = {name: id(p) for name, p in model.named_parameters()}
    old = type(part)

    def outcome() -> list[Tensor]:
        out = model(x)
        return [out, *torch.autograd.grad(out.square().sum(), [x, *model.parameters()])]

    before = outcome()
    report = fuse(model, recompute=recompute)
    assert [new for _, _, new in report.replaced] == [fused.__name__], report
    assert not report.kept
    assert isinstance(part, fused)
    assert isinstance(part, old)
    assert {name: id(p) for name, p in model.named_parameters()} == state
    torch.testing.assert_close(outcome(), before)
    names = {type(node).__name__ for node in _graph(model(x))}
    assert names & {"BilinearFunctionBackward", "TwoWeightsBackward"}
    assert not fuse(model).replaced
    assert len(unfuse(model).replaced) == 1
    assert type(part) is old
    assert all(torch.equal(a, b) for a, b in zip(outcome(), before, strict=True))
    assert {name: id(p) for name, p in model.named_parameters()} == state


def _graph(out: Tensor) -> list[object]:
    found, queue = [], [out.grad_fn]
    while queue:
        node = queue.pop()
        if node is not None:
            found.append(node)
            queue.extend(parent for parent, _ in node.next_functions)
    return found


REFUSED = {
    "Tanh": (lambda: LlamaMLP(8, 12, nn.Tanh()), "its activation act_fn is Tanh, which is not"),
    "function": (lambda: LlamaMLP(8, 12, torch.tanh), "reads self.act_fn, which may change"),
    "dropout": (lambda: Dropped(8, 12, nn.Identity()), "reads self.training"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_is_kept_and_said(kind: str) -> None:
    make, why = REFUSED[kind]
    model = nn.Sequential(make())
    old, mode = type(model[0]), model[0].training
    rng = torch.get_rng_state()
    report = fuse(model)
    assert not report.replaced
    assert [name for name, _ in report.kept] == ["0"]
    assert why in str(report)
    assert type(model[0]) is old
    assert model[0].training == mode
    assert torch.equal(torch.get_rng_state(), rng)


def test_a_pair_that_does_not_compute_the_formula_keeps_its_class_but_its_layer_is_fused() -> None:
    class Residual(reference.Model):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    model = Residual(reference.ModelConfig(4, 5))
    report = fuse(model)
    assert type(model) is Residual
    assert [(name, new) for name, _, new in report.replaced] == [("bi_linear", "FusedBilinear")]
    assert "also computes add" in report.kept[0][1]


def test_hooks_inside_a_fused_mlp_still_fire() -> None:
    model, seen = LlamaMLP(8, 12, nn.Identity()), []
    x = torch.randn(2, 8)
    want = model(x)
    fuse(model)
    model.up_proj.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(model(x), want)
    assert seen == [1]


def test_tied_modules_are_fused_once() -> None:
    shared = LlamaMLP(8, 12, nn.Identity())
    model = nn.Sequential(shared, shared)
    x = torch.randn(2, 8)
    want = model(x)
    assert len(fuse(model).replaced) == 1
    torch.testing.assert_close(model(x), want)


@pytest.mark.parametrize("kind", ["layer", "pair", "gated"])
def test_fused_models_are_copied_and_pickled(kind: str) -> None:
    model, fused, width = fusable()[kind]
    fuse(model)
    x = torch.randn(2, width)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(twin, fused)
        assert torch.equal(twin(x), model(x))
        unfuse(twin)
        torch.testing.assert_close(twin(x), model(x))


def test_a_library_layer_is_left_alone() -> None:
    model = nn.Sequential(Bilinear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    report = fuse(model)
    assert not report.replaced
    assert not report.kept


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_transformer_trains_the_same(device: str, recompute: bool) -> None:
    def losses(model: nn.Module, tokens: Tensor) -> list[float]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        found = []
        for _ in range(20):
            logits = model(tokens[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    plain = Transformer().to(device)
    fused = copy.deepcopy(plain)
    report = fuse(fused, recompute=recompute)
    assert [name for name, *_ in report.replaced] == ["blocks.0.mlp", "blocks.1.mlp"]
    tokens = torch.randint(0, 11, (8, 13), device=device)
    want = losses(plain, tokens)
    assert want[-1] < 0.8 * want[0]
    torch.testing.assert_close(losses(fused, tokens), want, rtol=2e-4, atol=0)
    for (name, a), (twin, b) in zip(
        plain.state_dict().items(), fused.state_dict().items(), strict=True
    ):
        assert name == twin
        assert a.shape == b.shape
