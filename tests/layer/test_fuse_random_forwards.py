"""`fuse` on forwards written at random: no replaced module differs from its own forward."""

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from written import written

from bilinear import fuse
from bilinear.layer.fused_modules import Fused

SEEN: Counter[str] = Counter()

# Expressions around the gate, the product and the output; the first of each is the formula's.
gates = st.sampled_from(
    ["{}", "{}", "{}", "{}", "{}", "self.act({})", "F.silu({})", "torch.tanh({})",
     "{}.clamp(-9, 9)", "F.gelu({})", "{} * 1.0", "{} + 0.0", "self.scale * {}", "{}.abs()",
     "F.dropout({}, 0.0)", "GAIN * {}", "F.gelu({}, approximate='tanh')", "{}.sigmoid()",
     "torch.square(F.relu({}))", "torch.square({})", "self.held({})", "F.silu({}, inplace=True)",
     "torch.tanh({})", "self.unknown({})", "torch.tanh(F.silu({}))", "self.act(self.act({}))"]
)  # fmt: skip
outs = st.sampled_from(
    ["{}", "{}", "{}", "{}", "{} * 1", "{} + x * 0", "self.scale * {}", "{} + self.shift",
     "F.dropout({}, 0.0)", "{} if self.on else -{}", "self.extra({})",
     "{} / self.down.in_features * 6"]
)  # fmt: skip
products = st.sampled_from(
    ["{l} * {r}", "{r} * {l}", "torch.mul({l}, {r})", "{l} * {r}", "{l} + {r}", "{l} * {l}",
     "{l} - {r}", "{l} * {r} * 1", "{l} * {r} + {l} * 0"]
)  # fmt: skip
argument = st.sampled_from(["x", "x", "hidden_states", "input"])


def write(
    packed: bool, gate: str, out: str, product: str, name: str, bias: bool
) -> type[nn.Module]:
    """A class with that forward, whose source `inspect` finds."""
    linears = "self.w = nn.Linear(5, 12, bias=BIAS)" if packed else (
        "self.l, self.r = nn.Linear(5, 6, bias=BIAS), nn.Linear(5, 6, bias=BIAS)"
    )  # fmt: skip
    split = f"l, r = self.w({name}).chunk(2, dim=-1)" if packed else (
        f"l, r = self.l({name}), self.r({name})"
    )  # fmt: skip
    made = "self.down(" + product.format(l="(" + gate.format("l") + ")", r="r") + ")"
    lines = [
        "class Written(nn.Module):",
        "    def __init__(self):",
        "        super().__init__()",
        f"        {linears.replace('BIAS', str(bias))}",
        "        self.down = nn.Linear(6, 4)",
    ]
    body = f"{gate}{out}"
    if "self.act" in body:
        lines.append("        self.act = nn.SiLU()")
    if "self.unknown" in body:
        lines.append("        self.unknown = nn.Tanh()")
    if "self.held" in body:
        lines.append("        self.held = F.gelu")
    if "self.scale" in body:
        lines.append("        self.scale = nn.Parameter(torch.ones(()))")
    if "self.shift" in body:
        lines.append("        self.register_buffer('shift', torch.zeros(4))")
    if "self.extra" in body:
        lines.append("        self.extra = nn.Identity()")
    if "self.on" in body:
        lines.append("        self.on = True")
    result = out.replace("x * 0", f"{name}[..., :4] * 0").format(*["out"] * 2)
    lines += [f"    def forward(self, {name}):", f"        {split}", f"        out = {made}"]
    lines += [f"        return {result}"]
    kind: type[nn.Module] = written("\n".join(lines))
    return kind


def own_forward(model: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(model, Fused)
    result: Tensor = type(model).proof.old.forward(model, x)
    return result


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.booleans(), gates, outs, products, argument, st.booleans(), st.integers(0, 2**31))
def check(
    packed: bool, gate: str, out: str, product: str, name: str, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    model = write(packed, gate, out, product, name, bias)().double()
    report = fuse(model)
    SEEN["replaced" if report.replaced else "kept" if report.kept else "passed over"] += 1
    if not report.replaced:
        return
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            value.normal_()  # scales of one and shifts of zero take effect now
    for training, scale in itertools.product((True, False), (1e-2, 1.0, 1e2)):
        model.train(training)
        x = scale * torch.randn(7, 5, dtype=torch.float64)
        torch.testing.assert_close(model(x), own_forward(model, x), rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_replaced_forward_is_the_formula_whatever_was_written() -> None:
    SEEN.clear()
    check()
    assert SEEN["replaced"] > 5, SEEN
    assert SEEN["kept"] > 10, SEEN
