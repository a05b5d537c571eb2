"""Which implementation a call runs on: forward, backward and `explain` all ask here."""

from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from bilinear.kernels.places import Kept, are_plain, signature
from bilinear.layer import eager, matmuls, native, triton_kernels
from bilinear.layer.call import PLAIN, Backward, Call, Forward, Implementation, Saved
from bilinear.layer.checks import check
from bilinear.layer.gates import gate_name
from bilinear.layer.rows import as_rows, backward_of, forward_of

# The first that does not refuse a call runs it; eager refuses none.
IMPLEMENTATIONS: tuple[Implementation, ...] = (triton_kernels, native, matmuls, eager)
_get_num_threads = torch.get_num_threads
# Reads `torch.backends.cuda.matmul.fp32_precision` without the four checks of its getter.
_fp32_precision = torch._C._get_fp32_precision_getter
# By the arguments' signature and the settings, so that a call like an earlier one skips the checks.
_chosen: Kept["Chosen"] = Kept()


# All arguments but x.
Rest = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


class Chosen(NamedTuple):
    """What runs calls of one signature that nothing surrounds."""

    call: Call
    implementation: Implementation
    # Each made ready when first needed, for x of any leading shape: forward by whether it is for
    # training; backward by what is needed and by the signature of what it takes, as a weight may
    # be another by then.
    forwards: dict[bool, Forward]
    backwards: Kept[Backward]

    def ready_forward(self, for_training: bool, x: Tensor, *given: *Rest) -> Forward:
        """Keep and return what gives out, and for training preact if it is to be saved."""
        saves = for_training and self.implementation.saves_preact(self.call)
        run = self.implementation.ready_forward(self.call, as_rows(x), *given, save_preact=saves)
        return self.forwards.setdefault(for_training, forward_of(x.shape, run))

    def ready_backward(
        self, key: tuple[Hashable, tuple[bool, ...]], *given: *tuple[Tensor, *Saved]
    ) -> Backward:
        """Keep and return what gives the gradients.

        Raises:
            RuntimeError: what was saved has another shape, dtype or device than in forward.
        """
        dout, x, weight, bias, w_p, preact = given
        now = describe(x, weight, bias, w_p, None, self.call.recompute, self.call.gate, PLAIN)
        if now[:6] != self.call[:6]:
            raise RuntimeError(
                "x, weight or w_p: expected no change between forward and backward of m, d_in, d, "
                f"d_out, dtype and device {self.call[:6]}, got {now[:6]}"
            )
        m, _, d, _, dtype, device = now[:6]
        if preact is not None and (preact.shape, preact.dtype, preact.device) != (
            (m, 2 * d), dtype, device
        ):  # fmt: skip
            raise RuntimeError(
                f"[L, R]: expected {(m, 2 * d)}, {dtype} and {device}, as it was saved, got "
                f"{tuple(preact.shape)}, {preact.dtype} and {preact.device}"
            )
        of_rows = as_rows(dout), as_rows(x), weight, bias, w_p, preact
        run = self.implementation.ready_backward(self.call, *of_rows, needs=key[1])
        return self.backwards.keep(key, backward_of(x.shape, run))


def select(call: Call) -> Implementation:
    """The first implementation that doesn't refuse the call."""
    for implementation in IMPLEMENTATIONS:
        if not implementation.refusal(call):
            return implementation
    raise AssertionError("eager refuses no call")


def describe(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    w_p: Tensor | None,
    b_p: Tensor | None,
    recompute: bool,
    gate: str,
    context: str,
) -> Call:
    """The arguments as a `Call`, once they are found to go together; see `checks.check`."""
    check(x, weight, bias, w_p, b_p)
    d_in = weight.shape[1]
    return Call(
        x.numel() // d_in,
        d_in,
        weight.shape[0] // 2,
        None if w_p is None else w_p.shape[0],
        x.dtype,
        x.device,
        precision(x.dtype, x.device),
        recompute,
        gate,
        context,
    )


def choose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    w_p: Tensor | None,
    b_p: Tensor | None,
    recompute: bool,
    gate: str,
) -> Chosen | None:
    """What runs a call that nothing surrounds; None unless the tensors are plain ones.

    Looked up where such a call came before: 1 µs, where checks and choice take 15.
    """
    key = (
        signature(x, weight, bias, w_p, b_p), recompute, gate, _get_num_threads(),
        _fp32_precision("cuda", "matmul"),
    )  # fmt: skip
    found = _chosen.get(key)
    if found is None and are_plain(x, weight, bias, w_p, b_p):
        gate_name(gate)  # raises for an unknown name
        call = describe(x, weight, bias, w_p, b_p, recompute, gate, PLAIN)
        found = _chosen.keep(key, Chosen(call, select(call), {}, Kept()))
    return found


def precision(dtype: torch.dtype, device: torch.device) -> str:
    """How the kernels form float32 products: torch's setting for CUDA, "ieee" or "tf32"."""
    if dtype != torch.float32 or (device.type == "cpu" and not triton_kernels.INTERPRETED):
        return "ieee"
    # The newer of torch's two settings: torch.set_float32_matmul_precision, the older, sets it too.
    # Reading the older raises where only the newer was set.
    return "tf32" if _fp32_precision("cuda", "matmul") == "tf32" else "ieee"
