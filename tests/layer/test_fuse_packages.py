"""`fuse` on other people's models and beside their tools: tiny random ones, nothing downloaded."""

import copy
import importlib
import runpy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bilinear import explain, fuse, unfuse
from bilinear.layer.fused_modules import Fused, FusedMLP, FusedPair

transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
# The configuration, what the MLPs become, and the gate that they have as they come.
FAMILIES: dict[str, tuple[str, type[Fused], str]] = {
    "llama": ("LlamaConfig", FusedMLP, "silu"),
    "mistral": ("MistralConfig", FusedMLP, "silu"),
    "qwen2": ("Qwen2Config", FusedMLP, "silu"),
    "qwen3": ("Qwen3Config", FusedMLP, "silu"),
    "gemma": ("GemmaConfig", FusedMLP, "gelu_tanh"),
    "gemma2": ("Gemma2Config", FusedMLP, "gelu_tanh"),
    "phi3": ("Phi3Config", FusedPair, "silu"),
}
# Gemma 2 has a name of its own for its activation.
ACTIVATION_NAMES = ("hidden_act", "hidden_activation")


@pytest.fixture(autouse=True)
def _functions(paths: Callable[..., None]) -> None:
    """Makes the few rows of these tests run the path of many rows."""
    paths(few=0)


def config_of(family: str, activation: str | None = None, **more: Any) -> Any:
    named = {} if activation is None else dict.fromkeys(ACTIVATION_NAMES, activation)
    return getattr(transformers, FAMILIES[family][0])(**SIZES, **named, **more)


def model_of(family: str, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config_of(family, **more))
    return model.double()


def tokens(rows: int = 3, length: int = 7) -> Tensor:
    return torch.randint(1, SIZES["vocab_size"], (rows, length))


def outcome(model: nn.Module, ids: Tensor) -> list[Tensor]:
    out = model(input_ids=ids, labels=ids)
    wanted = [p for p in model.parameters() if p.requires_grad]
    return [out.logits, *torch.autograd.grad(out.loss, wanted)]


def assert_same(got: list[Tensor], want: list[Tensor]) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def fused_parts(model: nn.Module) -> list[Fused]:
    return [module for module in model.modules() if isinstance(module, Fused)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_fused_as_it_comes(family: str) -> None:
    _, kind, gate = FAMILIES[family]
    plain, ids = model_of(family), tokens()
    fused = copy.deepcopy(plain)
    report = fuse(fused, strict=True)
    assert [new for *_, new in report.replaced] == [kind.__name__] * 2, report
    assert [part.proof.activation.gate for part in fused_parts(fused)] == [gate] * 2
    assert_same(outcome(fused, ids), outcome(plain, ids))
    assert list(fused.state_dict()) == list(plain.state_dict())
    unfuse(fused)
    assert all(map(torch.equal, outcome(fused, ids), outcome(plain, ids)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bilinear_model_of_a_family(family: str) -> None:
    plain, ids = model_of(family, activation="linear"), tokens()
    fused = copy.deepcopy(plain)
    fuse(fused, strict=True)
    assert [part.proof.activation.gate for part in fused_parts(fused)] == ["identity"] * 2
    assert_same(outcome(fused, ids), outcome(plain, ids))
    optimised = trained(fused, 20)[0], trained(plain, 20)[0]
    torch.testing.assert_close(*optimised, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("activation", ["linear", "gelu", "relu", "relu2", "sigmoid"])
def test_other_activations_of_its_configuration(activation: str) -> None:
    plain, ids = model_of("llama", activation=activation), tokens()
    fused = copy.deepcopy(plain)
    fuse(fused, strict=True)
    assert_same(outcome(fused, ids), outcome(plain, ids))
    reads = [hasattr(part, "interactions") for part in fused_parts(fused)]
    if activation == "linear":
        q = fused_parts(fused)[0].interactions()  # type: ignore[operator]
        x = torch.randn(5, SIZES["hidden_size"], dtype=torch.float64)
        want = plain.get_submodule("model.layers.0.mlp")(x)
        torch.testing.assert_close(torch.einsum("ni,oij,nj->no", x, q, x), want.detach())
    assert reads == [True, True]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
@pytest.mark.parametrize("family", ["llama", "gemma", "phi3"])
def test_it_is_compiled(family: str) -> None:
    plain, ids = model_of(family), tokens()
    fused = copy.deepcopy(plain)
    fuse(fused, strict=True)
    torch.compiler.reset()
    for layer in fused.model.layers:  # type: ignore[union-attr]
        layer.mlp.compile(backend="aot_eager", fullgraph=True)
    assert_same(outcome(fused, ids), outcome(plain, ids))


def test_it_generates_saves_and_loads(tmp_path: Any) -> None:
    plain, ids = model_of("llama").eval(), tokens(2, 4)
    fused = copy.deepcopy(plain)
    fuse(fused)
    want = plain.generate(ids, max_new_tokens=5, do_sample=False)
    assert torch.equal(fused.generate(ids, max_new_tokens=5, do_sample=False), want)
    fused.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert not fused_parts(loaded)
    torch.testing.assert_close(loaded(ids).logits, plain(ids).logits)


def test_the_bilinear_llama_of_the_examples() -> None:
    path = Path(__file__).parents[2] / "examples" / "bilinear_llama.py"
    runpy.run_path(str(path))


# (rows, width, hidden units, rows of x apart) of Liger-Kernel's tests of SwiGLU and GeGLU, and of
# quack's of its linears and MLPs; the first of Liger's GeGLU takes too long on a CPU.
SHAPES = [
    (2 * 256, 256, 512, 1),
    (6 * 42, 123, 431, 1),
    (9 * 41, 341, 4231, 1),
    (960, 736, 1504, 2),
    pytest.param(2 * 2048, 2048, 4096, 1, marks=pytest.mark.gpu),
    pytest.param(960, 4096, 2048, 2, marks=pytest.mark.gpu),
]


@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize(("m", "d_in", "d", "apart"), SHAPES)
def test_shapes_that_other_libraries_test(
    activation: str, m: int, d_in: int, d: int, apart: int
) -> None:
    """Errors against float64 are at most 1.1 times eager's, in float32 and bfloat16."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mlp = transformers.models.llama.modeling_llama.LlamaMLP
    config = transformers.LlamaConfig(
        hidden_size=d_in,
        intermediate_size=d,
        num_attention_heads=1,
        head_dim=8,
        hidden_act=activation,
    )
    exact = mlp(config).to(device).double()
    x, dout = torch.randn(apart * m, d_in, device=device)[::apart], torch.randn(m, d_in).to(device)

    def run(model: nn.Module) -> list[Tensor]:
        dtype = next(model.parameters()).dtype
        given = x.to(dtype).requires_grad_()
        out = model(given)
        wanted = [given, *model.parameters()]
        return [out, *torch.autograd.grad(out, wanted, dout.to(dtype))]

    for dtype in (torch.float32, torch.bfloat16):
        eager = copy.deepcopy(exact).to(dtype)
        fused = copy.deepcopy(eager)
        fuse(fused, strict=True)
        rounded = run(copy.deepcopy(eager).double())
        for mine, theirs, best in zip(run(fused), run(eager), rounded, strict=True):
            own, others = (mine.double() - best).norm(), (theirs.double() - best).norm()
            assert own <= 1.1 * others + 0.5 * torch.finfo(dtype).eps * best.norm()


def test_it_trains_under_gradient_checkpointing() -> None:
    plain, ids = model_of("mistral").train(), tokens()
    fused = copy.deepcopy(plain)
    fuse(fused)
    fused.gradient_checkpointing_enable()
    assert_same(outcome(fused, ids), outcome(plain, ids))


def test_a_llama_learns_the_same_in_fifty_steps() -> None:
    """In float32: the same losses; each MLP saves L and R, and neither silu(L) nor h."""
    plain = model_of("llama").float()
    fused = copy.deepcopy(plain)
    fuse(fused, strict=True)
    ids = tokens(8, 16)
    before, after = saved_bytes(plain, ids), saved_bytes(fused, ids)
    print(f"saved for backward: {before} bytes, {after} after fuse")
    assert before - after == 2 * 2 * ids.numel() * SIZES["intermediate_size"] * 4
    want, got = trained(plain, 50)[0], trained(fused, 50)[0]
    assert want[-1] < want[0]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def saved_bytes(model: nn.Module, ids: Tensor) -> int:
    """Distinct bytes that a forward saves for backward, parameters left out."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=ids).loss
    assert loss.requires_grad
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return sum(n for at, n in sizes.items() if at not in parameters)


def test_the_trainer_trains_it(tmp_path: Any) -> None:
    pytest.importorskip("accelerate")

    class Tokens(torch.utils.data.Dataset[dict[str, Tensor]]):
        def __len__(self) -> int:
            return 12

        def __getitem__(self, i: int) -> dict[str, Tensor]:
            ids = (torch.arange(7) * (i + 1)) % SIZES["vocab_size"]
            return {"input_ids": ids, "labels": ids}

    losses = []
    for fuses in (False, True):
        model = model_of("llama").float()
        if fuses:
            fuse(model, strict=True)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=5, per_device_train_batch_size=4, report_to=[],
            disable_tqdm=True, use_cpu=True, save_strategy="no", logging_strategy="no", seed=3,
        )  # fmt: skip
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=Tokens())
        losses.append(trainer.train().training_loss)
        assert len(fused_parts(trainer.model)) == (2 if fuses else 0)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def adapted(model: nn.Module, **more: Any) -> nn.Module:
    peft = pytest.importorskip("peft")
    targets = ["gate_proj", "up_proj", "down_proj", "gate_up_proj", "q_proj", "qkv_proj"]
    present = {name.rsplit(".")[-1] for name, _ in model.named_modules()}
    config = peft.LoraConfig(r=2, target_modules=sorted(present.intersection(targets)), **more)
    torch.manual_seed(1)
    wrapped = peft.get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return wrapped


def trained(model: nn.Module, steps: int = 20) -> list[Tensor]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    generator = torch.Generator().manual_seed(2)
    losses = []
    for _ in range(steps):
        ids = torch.randint(1, SIZES["vocab_size"], (3, 7), generator=generator)
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [torch.stack(losses), *(p.detach() for p in model.parameters())]


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_adapters_train_the_same_before_and_after_fuse(family: str, dora: bool) -> None:
    want = trained(adapted(model_of(family), use_dora=dora))
    late = model_of(family)
    assert len(fuse(late).replaced) == 2
    assert_same(trained(adapted(late, use_dora=dora)), want)
    assert "own forward" in str(explain(late))
    early = adapted(model_of(family), use_dora=dora)
    report = fuse(early)
    assert not report.replaced
    assert len(report.kept) == 2
    assert "merge it first (merge_and_unload)" in str(report)
    assert_same(trained(early), want)


def test_a_merged_adapter_is_fused_again() -> None:
    model = model_of("llama")
    fuse(model)
    wrapped = adapted(model)
    ids = tokens()
    want = wrapped(input_ids=ids).logits
    merged = wrapped.merge_and_unload()
    torch.testing.assert_close(merged(input_ids=ids).logits, want)
    assert "own forward" not in str(explain(merged))


def test_accelerates_hooks_before_and_after() -> None:
    hooks = pytest.importorskip("accelerate.hooks")

    class Twice(hooks.ModelHook):
        def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
            return 2 * output

    ids = tokens()
    for part in ("model.layers.0.mlp", "model.layers.0.mlp.gate_proj"):
        plain, late, early = (model_of("llama") for _ in range(3))
        for model in (plain, early):
            hooks.add_hook_to_module(model.get_submodule(part), Twice())
        fuse(late)
        hooks.add_hook_to_module(late.get_submodule(part), Twice())
        report = fuse(early)
        assert [name for name, _ in report.kept] == ["model.layers.0.mlp"], report
        want = outcome(plain, ids)
        assert_same(outcome(late, ids), want)
        assert_same(outcome(early, ids), want)


def test_quantised_weights_before_and_after() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torchao = pytest.importorskip("torchao.quantization")
    config = torchao.Int8WeightOnlyConfig()
    ids = tokens()

    def quantised(model: nn.Module) -> nn.Module:
        torchao.quantize_(model, config, lambda module, name: "mlp" in name and _is_linear(module))
        return model

    def _is_linear(module: nn.Module) -> bool:
        return isinstance(module, nn.Linear)

    models: list[Callable[[], nn.Module]] = [
        lambda: quantised(model_of("llama").float()),
        lambda: quantised(_fused(model_of("llama").float())),
        lambda: _fused(quantised(model_of("llama").float())),
    ]
    with torch.no_grad():
        want, late, early = (make()(input_ids=ids).logits for make in models)
    assert torch.equal(late, want)
    assert torch.equal(early, want)
    report = fuse(models[0]())
    assert not report.replaced
    assert "weight of type" in str(report)


def _fused(model: nn.Module) -> nn.Module:
    fuse(model)
    return model


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu_new", "gelu_10", "tanh"])
def test_other_activations_are_kept_by_name(activation: str) -> None:
    report = fuse(model_of("llama", activation=activation))
    assert not report.replaced
    assert [name for name, _ in report.kept] == [f"model.layers.{i}.mlp" for i in range(2)]
    assert "its activation act_fn is" in str(report)


EXPERTS: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 2},
    "Qwen3Moe": {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8},
    "GptOss": {"num_local_experts": 2, "num_experts_per_tok": 1},
}


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_in_one_tensor_are_kept_by_name(name: str) -> None:
    config = getattr(transformers, f"{name}Config")(**SIZES, **EXPERTS[name])
    report = fuse(transformers.AutoModelForCausalLM.from_config(config))
    assert not report.replaced
    said = [why for where, why in report.kept if where.endswith("mlp.experts")]
    assert len(said) == 2, report
    assert all("gate_up_proj is one tensor of many experts" in why for why in said)


def test_experts_that_are_modules_are_fused() -> None:
    """Mixtral's as they were once written; Qwen2-MoE's shared expert, beside packed ones."""
    mixtral = Mixture(16, 24, 4).double()
    want = mixtral(x := torch.randn(7, 16, dtype=torch.float64))
    report = fuse(mixtral, strict=True)
    assert [name for name, *_ in report.replaced] == [f"experts.{i}" for i in range(4)]
    torch.testing.assert_close(mixtral(x), want)
    config = transformers.Qwen2MoeConfig(
        **SIZES,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
    )
    plain = transformers.AutoModelForCausalLM.from_config(config)  # its experts run in float32
    fused, ids = copy.deepcopy(plain), tokens()
    report = fuse(fused)
    assert [n for n, *_ in report.replaced] == [
        f"model.layers.{i}.mlp.shared_expert" for i in range(2)
    ], report
    torch.testing.assert_close(fused(ids).logits, plain(ids).logits)


class Expert(nn.Module):
    def __init__(self, d: int, d_hidden: int) -> None:
        super().__init__()
        self.w1, self.w3 = nn.Linear(d, d_hidden, bias=False), nn.Linear(d, d_hidden, bias=False)
        self.w2 = nn.Linear(d_hidden, d, bias=False)
        self.act_fn = nn.SiLU()

    def forward(self, hidden_states: Tensor) -> Tensor:
        current = self.act_fn(self.w1(hidden_states)) * self.w3(hidden_states)
        current = self.w2(current)
        return current


class Mixture(nn.Module):
    def __init__(self, d: int, d_hidden: int, experts: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d, experts, bias=False)
        self.experts = nn.ModuleList(Expert(d, d_hidden) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gate(x).softmax(-1).topk(2)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            row, place = (chosen == i).nonzero(as_tuple=True)
            out = out.index_add(0, row, expert(x[row]) * weights[row, place, None])
        return out


def test_other_networks_are_kept_by_name() -> None:
    neox = {k: v for k, v in SIZES.items() if "key_value" not in k and k != "head_dim"}
    report = fuse(transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**neox)))
    assert len(report.kept) == 2, report


def test_the_packages_are_there() -> None:
    """CI must have the packages: without them the other tests here are skipped."""
    for name in ("peft", "accelerate", "kernels.layer"):
        importlib.import_module(name)
