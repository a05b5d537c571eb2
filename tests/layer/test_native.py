"""The compiled layer as an implementation: what it refuses, where it runs, what memory it takes."""

import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bilinear import Bilinear, BilinearMLP
from bilinear.kernels import layer_cpu
from bilinear.layer import eager, native
from bilinear.layer.call import TRANSFORMED, Call

missing = layer_cpu.unavailable_because(torch.float32, "identity")
pytestmark = pytest.mark.skipif(bool(missing), reason=missing)
CALL = Call(100, 64, 32, None, torch.float32, torch.device("cpu"))


@pytest.fixture(autouse=True)
def _as_they_come(paths: Callable[..., None]) -> None:
    paths()


def test_refusals_say_why() -> None:
    assert native.refusal(CALL) == ""
    assert "not cuda" in native.refusal(CALL._replace(device=torch.device("cuda")))
    assert "transforms" in native.refusal(CALL._replace(context=TRANSFORMED))
    assert "float64" in native.refusal(CALL._replace(dtype=torch.float64))
    assert "gate" in native.refusal(CALL._replace(gate="unheard of"))


def test_the_nearest_measured_sizes_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        native.Measured("avx2", 64, 64, 64, 0, "float32", False, 1, 0.9),
        native.Measured("avx2", 64, 64, 64, 0, "float32", False, 2, 1.1),
        native.Measured("avx2", 4096, 64, 64, 0, "float32", False, 1, 1.5),
        native.Measured("avx2", 64, 64, 64, 0, "float32", True, 1, 1.5),
        native.Measured("avx2", 64, 64, 64, 64, "float32", False, 1, 1.0),
        native.Measured("avx512", 64, 64, 64, 0, "float32", False, 1, 1.2),
    ]
    monkeypatch.setattr(native, "table", lambda: rows)
    native._nearest.cache_clear()
    native._rows_of.cache_clear()
    threads, processor = 1, "avx2"
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(layer_cpu, "processor", lambda: processor)
    try:
        said = native.refusal(CALL)
        assert "measured on avx2" in said
        assert "0.9 times torch's rate at (64, 64, 64), threads: 1" in said
        assert not native.refusal(CALL._replace(m=1000))
        assert not native.refusal(CALL._replace(recompute=True))
        assert not native.refusal(CALL._replace(d_out=9))  # equal speed is enough
        assert native.nearest(CALL._replace(m=0)) == rows[0]
        threads = 2
        assert not native.refusal(CALL)
        threads, processor = 1, "avx512"
        assert not native.refusal(CALL)
        # What was not measured is left to torch.
        assert "not measured on avx512" in native.refusal(CALL._replace(dtype=torch.float16))
        processor = "baseline"
        assert "not measured on baseline" in native.refusal(CALL)
    finally:
        native._nearest.cache_clear()
        native._rows_of.cache_clear()


def test_the_table_holds_what_select_asks_for() -> None:
    """The table has rows for every kind of call, large matmuls included, and none twice."""
    rows = native.table()
    assert {
        (row.processor, row.dtype, row.recompute, row.d_out > 0, row.threads) for row in rows
    } == {
        (processor, dtype, recompute, projects, threads)
        for processor in layer_cpu.PROCESSORS[1:]
        for dtype in ("float32", "bfloat16", "float16")
        for recompute in (False, True)
        for projects in (False, True)
        for threads in (1, 2)
    }
    assert len({row[:-1] for row in rows}) == len(rows)
    assert all(0 < row.times_faster < 1000 for row in rows)


def test_each_processor_has_a_choice_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled layer multiplies 16-bit numbers where torch has no instructions for them."""
    small = CALL._replace(m=1024)
    large = CALL._replace(m=1024, d_in=1024, d=1024)
    for processor, dtype, is_compiled in (
        ("avx2", torch.float32, True), ("avx512_fp16", torch.float32, True),
        ("avx2", torch.bfloat16, True), ("avx512", torch.bfloat16, True),
        ("avx512_bf16", torch.bfloat16, False), ("avx512_fp16", torch.bfloat16, False),
        ("avx512_bf16", torch.float16, True), ("avx512_fp16", torch.float16, False),
    ):  # fmt: skip
        monkeypatch.setattr(layer_cpu, "processor", lambda processor=processor: processor)
        call = (small if dtype == torch.float32 else large)._replace(dtype=dtype)
        assert (not native.refusal(call)) == is_compiled, (processor, dtype)
        assert native.refusal(large), processor


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_processor_is_known_by_its_instructions() -> None:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        flags = next((line.split() for line in lines if line.startswith("flags")), [])
    best = layer_cpu.best_isa()
    named = [name for name in ("avx512_fp16", "avx512_bf16") if name in flags]
    assert layer_cpu.processor() == (named[0] if named and best == "avx512" else best)


def test_one_thread_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for shares, said in ((True, False), (False, True)):
        monkeypatch.setattr(layer_cpu, "shares_work", lambda shares=shares: shares)
        assert ("one thread" in native.detail(CALL, "forward").reason) == said


def train(model: torch.nn.Module, x: Tensor) -> list[Tensor]:
    model(x).square().mean().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


class Batches(torch.utils.data.Dataset):
    """Runs the layer in a DataLoader's worker."""

    def __init__(self, layer: Bilinear) -> None:
        self.layer = layer

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            return self.layer(torch.full((300, 64), float(index)))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_loaders_forked_workers() -> None:
    batches = Batches(Bilinear(64, 80))
    want = [batches[i] for i in range(4)]  # computed in the parent first, which starts its threads
    loader = torch.utils.data.DataLoader(
        batches, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    for got, expected in zip(loader, want, strict=True):
        assert torch.equal(got, expected)


def test_threads_of_the_interpreter_at_once() -> None:
    model, x = BilinearMLP(64, 80, 48), torch.randn(1000, 64)
    want = model(x)
    found: list[Tensor] = []

    def work() -> None:
        for _ in range(5):
            found.append(model(x))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert all(torch.equal(out, want) for out in found)


def test_a_model_trains_as_the_composition_does() -> None:
    torch.manual_seed(0)
    model = BilinearMLP(64, 80, 48, bias=True)
    x = torch.randn(7, 150, 64)
    mine = train(model, x)
    parameters = {
        name: p.detach().double().requires_grad_() for name, p in model.named_parameters()
    }
    out = eager.compose(
        x.double(),
        parameters["bi_linear.weight"],
        parameters["bi_linear.bias"],
        parameters["projection.weight"],
        parameters["projection.bias"],
    )
    out.square().mean().backward()
    for got, exact in zip(mine, parameters.values(), strict=True):
        assert exact.grad is not None
        assert (got - exact.grad).norm() < 1e-5 * exact.grad.norm()


def run_alone(code: str, **variables: str) -> str:
    """Runs code in a new Python process and returns what it prints."""
    environment = os.environ | variables
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_inference_needs_memory_for_a_block_only() -> None:
    """Of 2^15 rows [L, R] has 64 MB and the output 1 MB: the process's peak grows by the latter."""
    grown = run_alone(
        """
        import torch
        from bilinear.functional import bilinear_mlp

        def kilobytes(name):
            lines = open("/proc/self/status").read().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith(name))

        x, weight, w_p = torch.randn(2**15, 32), torch.randn(512, 32), torch.randn(8, 256)
        with torch.no_grad():
            bilinear_mlp(x[:1000], weight, w_p)  # the first call allocates tables
            open("/proc/self/clear_refs", "w").write("5")  # the peak begins here
            before = kilobytes("VmRSS")
            out = bilinear_mlp(x, weight, w_p)
        print(kilobytes("VmHWM") - before)
        """
    )
    assert 2**15 * 8 * 4 // 1024 * 0.5 < int(grown) < 8 * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_threads_are_as_many_as_torch_is_told() -> None:
    """The layer starts no threads beside torch's, by either way to set their number."""
    counts = run_alone(
        """
        import os
        import torch
        from bilinear.functional import bilinear

        x, weight = torch.randn(3000, 64), torch.randn(256, 64)
        for threads in (None, 3, 1):
            if threads is not None:
                torch.set_num_threads(threads)
            before = len(os.listdir("/proc/self/task"))
            bilinear(x, weight)
            print(len(os.listdir("/proc/self/task")) - before)
        """,
        OMP_NUM_THREADS="1",
    )
    assert counts.split() == ["0", "2", "0"]


@pytest.mark.parametrize("limits", [{"OMP_THREAD_LIMIT": "1"}, {"OMP_THREAD_LIMIT": "2"}])
def test_fewer_threads_than_were_asked_for_do_all_the_work(limits: dict[str, str]) -> None:
    """OpenMP may start fewer threads than a call asks for."""
    run_alone(
        """
        import torch
        from bilinear.kernels import layer_cpu

        def results(m, d_out):
            torch.manual_seed(0)
            x, weight, bias = torch.randn(m, 90), torch.randn(320, 90), torch.randn(320)
            w_p = torch.randn(d_out, 160) if d_out else None
            b_p = torch.randn(d_out) if d_out else None
            given = x, weight, bias, w_p, b_p
            out, preact = layer_cpu.forward(*given, gate="silu", save_preact=True)
            needs = (True, True, True, w_p is not None, w_p is not None)
            saved = torch.randn(out.shape), x, weight, bias, w_p, preact
            return out, preact, *layer_cpu.backward(*saved, needs, gate="silu")

        for case in ((64, 0), (64, 70), (2000, 0), (2000, 70)):
            torch.set_num_threads(1)
            want = results(*case)
            torch.set_num_threads(5)
            for _ in range(3):
                for one, other in zip(results(*case), want, strict=True):
                    assert one is other or torch.equal(one, other), case
        """,
        **limits,
    )
