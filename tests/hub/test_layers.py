"""The layers for Hugging Face's `kernels`: what they compute, and that `kernelize` maps them."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from types import MethodType

import pytest
import torch
from torch import Tensor, nn

from bilinear.hub import layers

transformers = pytest.importorskip("transformers")
ROOT = Path(__file__).parents[2]
ACTIVATIONS = {
    "BilinearGLU": "linear",
    "SwiGLU": "silu",
    "GeGLU": "gelu",
    "GeGLUTanh": "gelu_pytorch_tanh",
    "ReGLU": "relu",
}


def mlp(activation: str, bias: bool) -> nn.Module:
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        hidden_act=activation,
        mlp_bias=bias,
    )
    made: nn.Module = transformers.models.llama.modeling_llama.LlamaMLP(config)
    return made.double()


def outcome(module: nn.Module, x: Tensor) -> list[Tensor]:
    out = module(x)
    return [out, *torch.autograd.grad(out.square().sum(), [x, *module.parameters()])]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_forward_is_the_modules(name: str, bias: bool) -> None:
    plain = mlp(ACTIVATIONS[name], bias)
    x = torch.randn(3, 5, 16, dtype=torch.float64, requires_grad=True)
    mapped = copy.deepcopy(plain)
    mapped.forward = MethodType(getattr(layers, name).forward, mapped)  # as kernelize does
    for a, b in zip(outcome(mapped, x), outcome(plain, x), strict=True):
        torch.testing.assert_close(a, b)


def test_what_it_would_pass_over_is_refused() -> None:
    module = mlp("silu", False)
    module.forward = MethodType(layers.SwiGLU.forward, module)
    module.up_proj.register_forward_hook(lambda *_: None)
    with pytest.raises(TypeError, match=r"up_proj: expected a torch\.nn\.Linear without hooks"):
        module(torch.randn(2, 16, dtype=torch.float64))


KERNELIZE = """
import copy, torch, transformers
from pathlib import Path
from kernels import Mode, LocalLayerRepository, kernelize, use_kernel_mapping
from kernels import replace_kernel_forward_from_hub
from transformers.models.llama.modeling_llama import LlamaMLP
import bilinear.hub

replace_kernel_forward_from_hub(LlamaMLP, "SwiGLU")
here = LocalLayerRepository(Path(bilinear.hub.__file__).parent, layer_name="SwiGLU")
sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
plain = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=61))
with use_kernel_mapping({"SwiGLU": {"cpu": here}}):
    model = kernelize(copy.deepcopy(plain), mode=Mode.TRAINING | Mode.TORCH_COMPILE, device="cpu")
assert "SwiGLU" in repr(model.model.layers[0].mlp.forward)
ids = torch.randint(1, 61, (2, 7))
found = [m(input_ids=ids, labels=ids) for m in (model, plain)]
torch.testing.assert_close(found[0].logits, found[1].logits)
pairs = [torch.autograd.grad(o.loss, list(m.parameters())) for o, m in zip(found, (model, plain))]
for a, b in zip(*pairs):
    torch.testing.assert_close(a, b)
"""


def test_kernelize_maps_it(tmp_path: Path) -> None:
    """In a process where `kernels` is that package, not this repository's folder of that name."""
    (tmp_path / "bilinear").symlink_to(ROOT / "bilinear")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"}

    def run(script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    if run("from kernels import kernelize").returncode:
        pytest.skip("needs Hugging Face's kernels (pip install kernels)")
    done = run(KERNELIZE)
    assert done.returncode == 0, done.stderr
