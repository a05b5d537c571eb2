"""Each gate's product and gradient against torch's own functions, and the names a gate goes by."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bilinear import Bilinear, BilinearMLP
from bilinear.functional import bilinear
from bilinear.layer.gates import GATES, gate_name, product, product_backward

TORCHS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "relu2": lambda x: torch.square(torch.relu(x)),
}
TOLERANCE = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.float32: {"rtol": 1e-5, "atol": 5e-5},
    torch.bfloat16: {"rtol": 3e-2, "atol": 3e-2},
    torch.float16: {"rtol": 4e-3, "atol": 4e-3},
}


@pytest.mark.parametrize("gate", TORCHS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("strided", [False, True])
def test_product_and_gradient_are_torchs(gate: str, dtype: torch.dtype, strided: bool) -> None:
    left, right, dh = torch.randn(3, 37, 19).to(dtype)
    left *= 5
    extremes = torch.tensor([100, -100, 0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-30, -30])
    left.view(-1)[: len(extremes)] = extremes.to(dtype)
    if strided:
        left, right = torch.cat((left, right), 1).chunk(2, 1)
    leaves = [left.clone().requires_grad_(), right.clone().requires_grad_()]
    want = TORCHS[gate](leaves[0]) * leaves[1]
    want_gradient = torch.cat(torch.autograd.grad(want, leaves, dh), 1)
    poison = torch.full((37, 76), 7.0).to(dtype)
    h, gradient = poison[:, 38:57], poison[:, :38]
    # Of +inf torch's exact gelu is inf or NaN, as it takes its vectorised loop or the other one.
    known = (left != torch.inf) if gate == "gelu" else torch.ones_like(left).bool()
    for out, grad in ((None, None), (h, gradient)):
        got = product(left, right, gate, out)
        got_gradient = product_backward(dh, left, right, gate, grad)
        for mine, theirs in ((got, want), (got_gradient, want_gradient)):
            here = known.repeat(1, mine.shape[1] // 19)
            torch.testing.assert_close(
                mine[here], theirs.detach()[here], equal_nan=True, **TOLERANCE[dtype]
            )
        assert out is None or got.data_ptr() == out.data_ptr()
        assert grad is None or got_gradient.data_ptr() == grad.data_ptr()


@pytest.mark.parametrize("gate", [gate for gate in GATES if gate != "identity"])
def test_saturation_is_torchs(gate: str) -> None:
    """At ±100 g is its limit: no overflow in g or g′."""
    left = torch.tensor([100.0, -100.0], requires_grad=True)
    h = product(left, torch.ones(2), gate)
    (slope,) = torch.autograd.grad(h.sum(), left)
    limits = {"sigmoid": ([1, 0], [0, 0]), "relu2": ([1e4, 0], [200, 0])}
    value, want = limits.get(gate, ([100, 0], [1, 0]))
    torch.testing.assert_close(h.detach(), torch.tensor(value).float(), atol=1e-30, rtol=1e-6)
    torch.testing.assert_close(slope, torch.tensor(want).float(), atol=1e-30, rtol=1e-6)


def test_every_way_to_say_a_gate() -> None:
    said: dict[str, list[object]] = {
        "identity": ["identity", nn.Identity()],
        "silu": ["silu", F.silu, nn.SiLU(), nn.SiLU(inplace=True)],
        "gelu": ["gelu", F.gelu, nn.GELU(), nn.GELU("none"), partial(F.gelu, approximate="none")],
        "gelu_tanh": ["gelu_tanh", nn.GELU("tanh"), TORCHS["gelu_tanh"]],
        "relu": ["relu", F.relu, torch.relu, nn.ReLU()],
        "sigmoid": ["sigmoid", F.sigmoid, torch.sigmoid, nn.Sigmoid()],
        "relu2": ["relu2"],
    }
    assert list(said) == list(GATES)
    for name, ways in said.items():
        assert [gate_name(way) for way in ways] == [name] * len(ways)
        layer, mlp = Bilinear(3, 2, gate=ways[-1]), BilinearMLP(3, 2, 4, gate=ways[-1])
        assert (layer.gate, mlp.gate) == (name, name)
        assert f"gate={name!r}" in repr(mlp)
        assert list(mlp.state_dict()) == list(BilinearMLP(3, 2, 4).state_dict())
        x = torch.randn(5, 3)
        h = TORCHS[name](x @ layer.w_l.t()) * (x @ layer.w_r.t())
        torch.testing.assert_close(layer(x), h)
        h = TORCHS[name](x @ mlp.w_l.t()) * (x @ mlp.w_r.t())
        torch.testing.assert_close(mlp(x), h @ mlp.w_p.t())


class OwnSiLU(nn.SiLU):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    "gate",
    [None, "swish", "SILU", "", nn.SiLU, nn.Tanh(), OwnSiLU(), torch.tanh, lambda x: x,
     partial(F.gelu, approximate="no"), partial(F.silu, inplace=True), torch.zeros(2), ["silu"]],
)  # fmt: skip
def test_unknown_gates_are_refused(gate: object) -> None:
    for refused in (
        lambda: gate_name(gate),
        lambda: Bilinear(3, 2, gate=gate),
        lambda: BilinearMLP(3, 2, 1, gate=gate),
        lambda: bilinear(torch.zeros(2, 3), torch.zeros(4, 3), gate=gate),
    ):
        with pytest.raises(ValueError, match=r"gate: expected one of identity, silu, .* got "):
            refused()
