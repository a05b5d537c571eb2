"""Which implementation `select` chooses for a call."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from bilinear.kernels import layer_cpu
from bilinear.layer import eager, matmuls, native, select, triton_kernels
from bilinear.layer.call import PLAIN, TRACED, TRANSFORMED, Call

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def _settings() -> Iterator[None]:
    yield
    torch.backends.fp32_precision = "none"
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("_settings")
def test_precision_follows_both_of_torchs_settings() -> None:
    for setting, want in (("highest", "ieee"), ("high", "tf32"), ("medium", "tf32")):
        torch.set_float32_matmul_precision(setting)
        assert select.precision(torch.float32, CUDA) == want
        assert select.precision(torch.bfloat16, CUDA) == "ieee"
        assert select.precision(torch.float32, CPU) == "ieee"
    torch.set_float32_matmul_precision("highest")
    for newer in ("tf32", "ieee"):
        torch.backends.cuda.matmul.fp32_precision = newer
        assert select.precision(torch.float32, CUDA) == newer
    for newest in ("tf32", "ieee"):  # for every backend, where "none" leaves it to that
        torch.backends.cuda.matmul.fp32_precision = "none"
        torch.backends.fp32_precision = newest
        assert select.precision(torch.float32, CUDA) == newest


@pytest.mark.usefixtures("_settings")
def test_a_changed_setting_is_seen_by_the_next_call(paths: Callable[..., None]) -> None:
    paths(interpreted=True)
    x, weight = torch.randn(3, 6), torch.randn(8, 6)
    found = []
    for setting in ("ieee", "tf32", "ieee"):
        torch.backends.cuda.matmul.fp32_precision = setting
        chosen = select.choose(x, weight, None, None, None, False, "identity")
        assert chosen is not None
        found.append(chosen[0].precision)
    assert found == ["ieee", "tf32", "ieee"]


def test_the_first_that_does_not_refuse(
    paths: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths()
    few = Call(4, 6, 4, None, torch.float32, CPU)
    many = few._replace(m=2**20)
    if not layer_cpu.unavailable_because(torch.float32, "identity"):
        assert select.select(few) is select.select(many) is native
        assert select.select(few._replace(context=TRACED)) is native
        assert select.select(many._replace(context=TRANSFORMED)) is eager
        assert select.select(many._replace(m=2**10, d_in=1024, d=1024)) is matmuls
        assert select.select(many._replace(dtype=torch.float64)) is matmuls
        assert select.select(few._replace(dtype=torch.float64)) is eager
        assert select.select(many._replace(gate="unheard of")) is matmuls
    paths(compiled=False)
    assert select.select(few) is eager
    assert select.select(few._replace(d_out=3)) is matmuls
    assert select.select(few._replace(recompute=True)) is matmuls
    assert select.select(few._replace(context=TRACED)) is matmuls
    assert select.select(many) is matmuls
    assert select.select(many._replace(context=TRANSFORMED)) is eager
    paths(interpreted=True)
    assert select.select(few) is triton_kernels
    assert select.select(few._replace(context=TRANSFORMED)) is eager
    monkeypatch.setattr(triton_kernels, "_missing_on_gpu", lambda device: "no such device")
    assert select.select(few._replace(device=CUDA)) is matmuls


def test_a_call_seen_before_is_not_checked_again(
    paths: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths()
    checked: list[Any] = []
    monkeypatch.setattr(select, "check", lambda *given: checked.append(given))
    x, weight, bias = torch.randn(3, 6), torch.randn(8, 6), torch.randn(8)
    for given in ((x, weight, None), (x, weight, bias), (x.double(), weight, None)) * 2:
        chosen = select.choose(*given, None, None, False, "identity")
        assert chosen is not None
        assert chosen[0].context == PLAIN
    assert len(checked) == 3
    assert select.choose(x.to("meta"), weight, None, None, None, False, "identity") is None
    assert select.choose([1.0], weight, None, None, None, False, "identity") is None  # type: ignore[arg-type]


def test_signatures_do_not_pile_up(
    paths: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths()
    monkeypatch.setattr(select._chosen, "most", 5)
    weight = torch.randn(8, 6)
    for m in range(30):
        select.choose(torch.randn(m, 6), weight, None, None, None, False, "identity")
        assert 0 < len(select._chosen) <= 5
