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
        native.Measured(64, 64, 64, 0, "float32", False, 1, 0.9),
        native.Measured(64, 64, 64, 0, "float32", False, 2, 1.1),
        native.Measured(4096, 64, 64, 0, "float32", False, 1, 1.5),
        native.Measured(64, 64, 64, 0, "float32", True, 1, 1.5),
        native.Measured(64, 64, 64, 64, "float32", False, 1, 1.0),
    ]
    monkeypatch.setattr(native, "table", lambda: rows)
    native._nearest.cache_clear()
    threads = 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    try:
        said = native.refusal(CALL)
        assert "0.9 times torch's rate at (64, 64, 64), threads: 1" in said
        assert not native.refusal(CALL._replace(m=1000))
        assert not native.refusal(CALL._replace(recompute=True))
        assert not native.refusal(CALL._replace(d_out=9))  # equal speed is enough
        assert not native.refusal(CALL._replace(dtype=torch.float16))  # not measured
        assert native.nearest(CALL._replace(m=0)) == rows[0]
        threads = 2
        assert not native.refusal(CALL)
    finally:
        native._nearest.cache_clear()


def test_the_table_holds_what_select_asks_for() -> None:
    """The table has rows for every kind of call, large matmuls included, and none twice."""
    rows = native.table()
    assert {(row.dtype, row.recompute, row.d_out > 0) for row in rows} == {
        (dtype, recompute, projects)
        for dtype in ("float32", "bfloat16", "float16")
        for recompute in (False, True)
        for projects in (False, True)
    }
    assert len({row[:-1] for row in rows}) == len(rows)
    assert all(0 < row.times_faster < 1000 for row in rows)
    assert not native.refusal(CALL)
    assert native.refusal(CALL._replace(m=1024, d_in=1024, d=1024))


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
