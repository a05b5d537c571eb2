"""`fuse` on other people's models and beside their tools: tiny random ones, nothing downloaded."""

import copy
import importlib
import warnings
from collections.abc import Callable
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
FAMILIES: dict[str, tuple[str, str, type[Fused]]] = {
    "llama": ("LlamaConfig", "hidden_act", FusedMLP),
    "mistral": ("MistralConfig", "hidden_act", FusedMLP),
    "qwen2": ("Qwen2Config", "hidden_act", FusedMLP),
    "qwen3": ("Qwen3Config", "hidden_act", FusedMLP),
    "gemma": ("GemmaConfig", "hidden_activation", FusedMLP),
    "phi3": ("Phi3Config", "hidden_act", FusedPair),
}


def config_of(family: str, activation: str = "linear", **more: Any) -> Any:
    name, key, _ = FAMILIES[family]
    named = {key: activation, "hidden_act": activation}
    return getattr(transformers, name)(**SIZES, **named, **more)


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
def test_a_family_with_the_identity_is_fused(family: str) -> None:
    plain, ids = model_of(family), tokens()
    fused = copy.deepcopy(plain)
    report = fuse(fused)
    assert [new for *_, new in report.replaced] == [FAMILIES[family][2].__name__] * 2, report
    assert_same(outcome(fused, ids), outcome(plain, ids))
    assert list(fused.state_dict()) == list(plain.state_dict())
    unfuse(fused)
    assert all(map(torch.equal, outcome(fused, ids), outcome(plain, ids)))


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


def test_it_trains_under_gradient_checkpointing() -> None:
    plain, ids = model_of("mistral").train(), tokens()
    fused = copy.deepcopy(plain)
    fuse(fused)
    fused.gradient_checkpointing_enable()
    assert_same(outcome(fused, ids), outcome(plain, ids))


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


def test_other_activations_and_experts_are_kept_by_name() -> None:
    silu = model_of("llama", activation="silu")
    report = fuse(silu)
    assert not report.replaced
    assert [name for name, _ in report.kept] == [f"model.layers.{i}.mlp" for i in range(2)]
    assert "act_fn" in str(report)
    sizes = {k: v for k, v in SIZES.items() if k != "head_dim"}
    mixtral = transformers.MixtralConfig(**sizes, num_local_experts=2)
    report = fuse(transformers.AutoModelForCausalLM.from_config(mixtral))
    assert not report.replaced
    assert any("experts" in name for name, _ in report.kept), report
    neox = {k: v for k, v in SIZES.items() if "key_value" not in k and k != "head_dim"}
    report = fuse(transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**neox)))
    assert len(report.kept) == 2, report


def test_the_packages_are_there() -> None:
    """A skipped file would say nothing of what it is for."""
    for name in ("peft", "accelerate"):
        importlib.import_module(name)
