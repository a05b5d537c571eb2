"""Every registered operator, by torch's own check of schema, fakes and tracing."""

from typing import Any

import pytest
import torch
from torch import Tensor

from bilinear.layer import custom_ops as ops
from bilinear.layer import select as paths

CPU_AND_GPU = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "INTERPRETED", False)


def samples(device: str, m: int, bias: bool) -> list[tuple[Any, tuple[Any, ...]]]:
    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device)

    d_in, d, d_out = 6, 4, 3
    x, weight, w_p = random(m, d_in), random(2 * d, d_in), random(d_out, d)
    b, b_p = (random(2 * d), random(d_out)) if bias else (None, None)
    dh, dout, lr = random(m, d), random(m, d_out), random(m, 2 * d)
    expanded = random(1, d).expand(m, d)
    return [
        (ops.forward, (x, weight, b)),
        (ops.forward, (random(d_in, m).t(), weight, b)),
        (ops.forward_keep, (x, weight, b)),
        (ops.backward, (dh, x, weight, b, lr, [True, True, bias])),
        (ops.backward, (expanded, x, weight, b, None, [False, True, bias])),
        (ops.backward, (dh, x, weight, b, lr, [True, False, False])),
        (ops.mlp_forward, (x, weight, w_p, b, b_p)),
        (ops.mlp_forward_keep, (x, weight, w_p, b, b_p)),
        (ops.mlp_backward, (dout, x, weight, w_p, b, lr, [True] * 3 + [bias] * 2)),
        (ops.mlp_backward, (dout, x, weight, w_p, b, None, [False, False, True, bias, False])),
    ]


@pytest.mark.parametrize("device", CPU_AND_GPU)
@pytest.mark.parametrize(("m", "bias"), [(5, True), (1, False), (0, True)])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_opcheck(device: str, m: int, bias: bool) -> None:
    for op, arguments in samples(device, m, bias):
        torch.library.opcheck(op, arguments)


def test_spread_undoes_leaving_out() -> None:
    a, b = torch.zeros(1), torch.zeros(2)
    assert ops.spread([a, b], [False, True, True, False]) == (None, a, b, None)
