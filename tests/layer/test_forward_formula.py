"""How `formula` reads each spelling of the layer, and which source and operations it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from written import gated, written

from bilinear import fuse
from bilinear.layer import recognise
from bilinear.layer.forward_formula import Unread, formula

X, FORMULA = ("x",), "return self.down(self.l(x) * self.r(x))"
LEFT, RIGHT = ("linear", "l", X), ("linear", "r", X)
HALVES = ("half", 0, ("linear", "w", X)), ("half", 1, ("linear", "w", X))


def down(left: Any, right: Any) -> Any:
    return "linear", "down", ("mul", left, right)


# Forwards by the expression that they are read as.
OF_TWO = {
    FORMULA: down(LEFT, RIGHT),
    "y = self.l(x)\nreturn self.down(y * self.r(x))": down(LEFT, RIGHT),
    "return self.down(torch.mul(self.l(x), self.r(x)))": down(LEFT, RIGHT),
    "return self.down(operator.mul(self.l(x), self.r(x)))": down(LEFT, RIGHT),
    "return self.down(self.l(x).mul(self.r(x)))": down(LEFT, RIGHT),
    "return self.down(self.l(x).__mul__(self.r(x)))": down(LEFT, RIGHT),
    "return nn.functional.silu(x)": ("act", "silu", "silu", X),
    **{
        f"return self.down({call} * self.r(x))": down(("act", gate, name, LEFT), RIGHT)
        for call, gate, name in (
            ("F.silu(self.l(x))", "silu", "silu"),
            ("F.silu(self.l(x), inplace=False)", "silu", "silu"),
            ("silu(self.l(x))", "silu", "silu"),
            ("F.gelu(self.l(x))", "gelu", "gelu"),
            ("F.gelu(self.l(x), approximate='none')", "gelu", "gelu"),
            ("F.gelu(self.l(x), approximate='tanh')", "gelu_tanh", "gelu"),
            ("F.relu(self.l(x))", "relu", "relu"),
            ("F.relu(self.l(x), inplace=False)", "relu", "relu"),
            ("torch.relu(self.l(x))", "relu", "relu"),
            ("self.l(x).relu()", "relu", "relu"),
            ("F.sigmoid(self.l(x))", "sigmoid", "sigmoid"),
            ("torch.sigmoid(self.l(x))", "sigmoid", "sigmoid"),
            ("self.l(x).sigmoid()", "sigmoid", "sigmoid"),
            ("torch.square(F.relu(self.l(x)))", "relu2", "square"),
            # Functions that are no gate have an empty gate; `fuse` names them as its reason.
            ("torch.tanh(self.l(x))", "", "tanh"),
            ("torch.square(self.l(x))", "", "square"),
            ("F.silu(self.l(x), inplace=True)", "", "silu"),
            ("F.relu(self.l(x), inplace=True)", "", "relu"),
            ("self.l(x).abs()", "", "abs"),
            ("self.l(x).relu(inplace=False)", "", "relu"),
        )
    },
}
OF_PACKED = {
    "l, r = self.w(x).chunk(2, dim=-1)\nreturn self.down(l * r)": down(*HALVES),
    "l, r = self.w(x).chunk(2, -1)\nreturn self.down(r * l)": down(*HALVES[::-1]),
    "l, r = torch.chunk(self.w(x), 2, dim=-1)\nreturn self.down(l * r)": down(*HALVES),
    "l, r = torch.chunk(self.w(x), 2, -1)\nreturn self.down(l * r)": down(*HALVES),
    "parts = self.w(x).chunk(2, -1)\nreturn self.down(parts[0] * parts[1])": down(*HALVES),
    "parts = self.w(x).chunk(2, -1)\n"
    "return self.down(operator.getitem(parts, 0) * parts[1])": down(*HALVES),
}  # fmt: skip


@pytest.mark.parametrize("body", OF_TWO)
def test_spellings_of_two_linears(body: str) -> None:
    assert formula(gated(body)) == OF_TWO[body]


@pytest.mark.parametrize("body", OF_PACKED)
def test_spellings_of_a_packed_linear(body: str) -> None:
    assert formula(gated(body, packed=True)) == OF_PACKED[body]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "call",
    ["super().forward(x)", "F.linear(x, self.weight, self.bias)",
     "F.linear(x, self.weight, bias=self.bias)"],
)  # fmt: skip
def test_a_layer_that_is_one_linear(call: str, bias: bool) -> None:
    source = (
        "class Written(nn.Linear):\n    def forward(self, x):\n"
        f"        l, r = {call}.chunk(2, dim=-1)\n        return l * r"
    )
    layer = written(source)(5, 12, bias=bias).double()
    x = torch.randn(3, 5, dtype=torch.float64)
    want = layer(x)
    assert len(fuse(layer, strict=True).replaced) == 1
    torch.testing.assert_close(layer(x), want)


def test_a_layer_that_leaves_its_bias_out() -> None:
    source = (
        "class Written(nn.Linear):\n    def forward(self, x):\n"
        "        l, r = F.linear(x, self.weight).chunk(2, dim=-1)\n        return l * r"
    )
    assert len(fuse(written(source)(5, 12, bias=False)).replaced) == 1
    with pytest.raises(Unread, match="also computes linear"):
        formula(written(source)(5, 12))


# Lines that change nothing today, with the reason for which `formula` refuses them.
NOT_STRAIGHT = [
    "if F.silu: pass", "x = x if F.silu else x", "for _ in (): pass", "while None: pass",
    "try: pass\nfinally: pass", "with torch: pass", "F.silu and F.gelu", "F.silu is F.gelu",
    "lambda: 0", "[0 for _ in ()]", "(0 for _ in ())", "{0: 0 for _ in ()}", "{0 for _ in ()}",
    "global GAIN", "assert F.silu", "def f(): pass", "class C: pass", "y = x\ndel y",
    "(y := x)", "match 0:\n    case _: pass", "y = 0\ny += 0", "async def f(): pass",
]  # fmt: skip
BEFORE = {
    **dict.fromkeys(NOT_STRAIGHT, "branches or loops"),
    "self.l.weight": "reads self.l.weight, which may change",
    "self.training": "reads self.training, which may change",
    "self.down = self.down": "changes self.down",
    "x.kept = x": "changes x.kept",
    "y = self": "hands self to something else",
    "GAIN": "reads GAIN, which is none of torch's",
    "print": "reads print, which is none of torch's",
    "abs(x)": "reads abs, which is none of torch's",
    "relu(x)": "reads relu, which is none of torch's",
    "manual_seed(0)": "reads manual_seed, which is none of torch's",
    "torch.manual_seed(0)": "calls torch.manual_seed",
    "nn.init.zeros_(self.l)": "calls nn.init.zeros_",
    "F.dropout(x)": "calls F.dropout",
    "super().train()": "calls super().train",
}


@pytest.mark.parametrize("line", BEFORE)
def test_a_line_that_may_come_to_matter(line: str) -> None:
    module = gated(f"{line}\n{FORMULA}")
    with pytest.raises(Unread) as refusal:
        formula(module)
    assert BEFORE[line] in str(refusal.value)


@pytest.mark.parametrize("line", ["raise", "yield", "yield from ()"])
def test_a_line_that_is_never_reached(line: str) -> None:
    with pytest.raises(Unread, match="branches or loops"):
        formula(gated(f"{FORMULA}\n{line}"))


def test_variables_of_an_enclosing_function() -> None:
    source = (
        "def make(gain):\n    class Written(nn.Module):\n        def forward(self, x):\n"
        "            {}\n            return F.silu(x)\n    return Written()"
    )
    for line, why in (("nonlocal gain", "branches or loops"), ("gain", "reads gain, which is")):
        with pytest.raises(Unread, match=why):
            formula(written(source.format(line), "make")(torch.ones(())))


# Forwards with another operation than the formula's, and what the refusal names.
TRACED = {
    "return self.down(self.l(x) * 1.0)": "mul",
    "return self.down(torch.mul(self.l(x), 2))": "mul",
    "return self.down(self.l(x).mul(2))": "mul",
    "return self.down(torch.mul(self.l(x), self.r(x), out=x))": "mul",
    "return self.down(self.l(x) + self.r(x))": "add",
    "return self.down(F.gelu(input=self.l(x)) * self.r(x))": "gelu",
    "return self.down(F.linear(x, x) * self.r(x))": "linear",
    "return self.down(self.l(x)[0] * self.r(x))": "getitem",
    "return self.down(self.l(input=x) * self.r(x))": r"l\(…\)",
    "return self.l(x), self.r(x)": "something else than one tensor",
    "return x.shape": "getattr",
    "return 0": "something else than one tensor",
    "return self.missing(x)": "self.missing, which may change",
    "x.nothing.at.all\nreturn x + None": "None",
}
TRACED_OF_PACKED = {
    "l, r, _ = self.w(x).chunk(3, -1)\nreturn self.down(l * r)": "chunk",
    "l, r = self.w(x).chunk(2)\nreturn self.down(l * r)": "chunk",
    "l, r = self.w(x).chunk(2, 0)\nreturn self.down(l * r)": "chunk",
    "l, r = self.w(x).chunk(2, dim=1)\nreturn self.down(l * r)": "chunk",
    "l, r = self.w(x).chunk(chunks=2, dim=-1)\nreturn self.down(l * r)": "chunk",
    "parts = self.w(x).chunk(2, -1)\nreturn self.down(parts[-1] * parts[0])": "getitem",
    "parts = self.w(x).chunk(2, -1)\nreturn self.down(parts[0:1] * parts[1])": "getitem",
}


@pytest.mark.parametrize("body", [*TRACED, *TRACED_OF_PACKED])
def test_what_is_traced_besides_the_formula(body: str) -> None:
    module = gated(body, packed=body in TRACED_OF_PACKED)
    with pytest.raises(Unread, match={**TRACED, **TRACED_OF_PACKED}[body]):
        formula(module)


def test_forwards_that_cannot_be_read() -> None:
    class Hidden(nn.Module):
        forward = eval("lambda self, x: x")

    def decorated(forward: Any) -> Any:
        return forward

    class Decorated(nn.Module):
        @decorated
        def forward(self, x: Tensor) -> Tensor:
            return x

    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    class Wrapped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    # `inspect` would read the other's source.
    Wrapped.forward.__wrapped__ = Plain.forward  # type: ignore[attr-defined]
    asynchronous = written(
        "class Written(nn.Module):\n    async def forward(self, x):\n        return x"
    )
    reasons = {
        Hidden: "source of its forward is not at hand",
        Decorated: "decorated, or no plain function",
        Wrapped: "decorated, or no plain function",
        asynchronous: "decorated, or no plain function",
    }
    for kind, why in reasons.items():
        with pytest.raises(Unread, match=why):
            formula(kind())


def test_two_inputs_are_not_one() -> None:
    source = (
        "class Written(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.l, self.r = nn.Linear(5, 6), nn.Linear(5, 6)\n"
        "        self.down = nn.Linear(6, 4)\n"
        "    def forward(self, x, y=None):\n        return self.down(self.l(x) * self.r(y))"
    )
    module = written(source)()
    assert formula(module)[2][2] == ("linear", "r", ("other input", "y"))
    assert not fuse(module).replaced


def test_reading_alone_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the comparison by numbers switched off, nothing but the formula is replaced."""
    monkeypatch.setattr(recognise, "difference", lambda *_: "")
    for body in (*[f"{line}\n{FORMULA}" for line in BEFORE], *TRACED, *TRACED_OF_PACKED):
        module = gated(body, packed=body in TRACED_OF_PACKED)
        assert not fuse(module).replaced, body
    assert len(fuse(gated(FORMULA)).replaced) == 1
