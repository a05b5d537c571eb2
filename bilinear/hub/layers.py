"""Forwards of gated MLPs that Hugging Face's `kernelize` puts into models, one class a gate.

Each is for modules with linears gate_proj, up_proj and down_proj, as in Llama-family models, whose
activation is that gate. Unlike `fuse`, `kernelize` does not check the activation: map only what has
it. `kernelize` refuses classes that hold state or define methods besides forward.

    replace_kernel_forward_from_hub(LlamaMLP, "SwiGLU")
    here = LocalLayerRepository(Path(bilinear.hub.__file__).parent, layer_name="SwiGLU")
    with use_kernel_mapping({"SwiGLU": {"cpu": here, "cuda": here}}):
        kernelize(model, mode=Mode.TRAINING)
"""

from typing import Any

from torch import Tensor, nn

from bilinear.layer.context import is_undisturbed
from bilinear.layer.modules import has_hooks
from bilinear.layer.two_weights import gated_mlp


class _Layer(nn.Module):
    has_backward = True
    can_torch_compile = True


class BilinearGLU(_Layer):
    """The identity as gate."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, d_in) → (…, d_out)."""
        return _run(self, x, "identity")


class SwiGLU(_Layer):
    """Silu as gate."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, d_in) → (…, d_out)."""
        return _run(self, x, "silu")


class GeGLU(_Layer):
    """The exact gelu as gate."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, d_in) → (…, d_out)."""
        return _run(self, x, "gelu")


class GeGLUTanh(_Layer):
    """Gelu's approximation by tanh as gate."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, d_in) → (…, d_out)."""
        return _run(self, x, "gelu_tanh")


class ReGLU(_Layer):
    """Relu as gate."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, d_in) → (…, d_out)."""
        return _run(self, x, "relu")


def _run(module: Any, x: Tensor, gate: str) -> Tensor:
    left, right, down = module.gate_proj, module.up_proj, module.down_proj
    for name, linear in (("gate_proj", left), ("up_proj", right), ("down_proj", down)):
        if type(linear) is not nn.Linear or has_hooks(linear):
            raise TypeError(
                f"{name}: expected a torch.nn.Linear without hooks, got {type(linear).__name__}; "
                "bilinear.fuse takes adapters and hooks into account"
            )
    of_left, of_right, of_down = ((part.weight, part.bias) for part in (left, right, down))
    return gated_mlp(x, *of_left, *of_right, *of_down, False, gate, is_undisturbed())
