"""Every registered operator, by torch's own check of schema, fakes and tracing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bilinear.layer import custom_ops

CPU_AND_GPU = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(autouse=True)
def _no_interpreter(paths: Callable[..., None]) -> None:
    paths()


def samples(device: str, m: int, bias: bool, gate: str) -> list[tuple[Any, tuple[Any, ...]]]:
    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device)

    d_in, d, d_out = 6, 4, 3
    x, weight, w_p = random(m, d_in), random(2 * d, d_in), random(d_out, d)
    b, b_p = (random(2 * d), random(d_out)) if bias else (None, None)
    dh, dout, preact = random(m, d), random(m, d_out), random(m, 2 * d)
    expanded = random(1, d).expand(m, d)
    forward, backward = custom_ops.forward, custom_ops.backward
    alone = [False, False]
    return [
        (forward, (x, weight, b, None, None, False, gate)),
        (forward, (random(d_in, m).t(), weight, b, None, None, False, gate)),
        (forward, (x, weight, b, None, None, True, gate)),
        (forward, (x, weight, b, w_p, b_p, False, gate)),
        (forward, (x, weight, b, w_p, b_p, True, gate)),
        (backward, (dh, x, weight, b, None, preact, [True, True, bias, *alone], gate)),
        (backward, (expanded, x, weight, b, None, None, [False, True, bias, *alone], gate)),
        (backward, (dh, x, weight, b, None, preact, [True, False, False, *alone], gate)),
        (backward, (dout, x, weight, b, w_p, preact, [True, True, bias, True, bias], gate)),
        (backward, (dout, x, weight, b, w_p, None, [False, False, bias, True, False], gate)),
    ]


@pytest.mark.parametrize("device", CPU_AND_GPU)
@pytest.mark.parametrize(
    ("m", "bias", "gate"),
    [(5, True, "identity"), (1, False, "silu"), (0, True, "gelu_tanh"), (7, True, "relu2")],
)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_opcheck(device: str, m: int, bias: bool, gate: str) -> None:
    for op, arguments in samples(device, m, bias, gate):
        torch.library.opcheck(op, arguments)


def test_spread_undoes_leaving_out() -> None:
    a, b = torch.zeros(1), torch.zeros(2)
    needs = [False, True, True, False, False]
    assert custom_ops.spread([a, b], needs) == (None, a, b, None, None)


def test_whether_preact_is_saved() -> None:
    x, weight, w_p = torch.zeros(2, 6), torch.zeros(8, 6), torch.zeros(3, 4)
    for projection in (None, w_p):
        assert custom_ops.saves_preact(x, weight, projection, False, "identity")
        assert not custom_ops.saves_preact(x, weight, projection, True, "identity")
