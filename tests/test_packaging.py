"""The files of an installation, and the modules that an import loads."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import bilinear

ROOT = Path(__file__).parent.parent


# A user's script, for the type checker.
SCRIPT = """\
import torch

import bilinear
from bilinear import Bilinear, BilinearMLP, explain, fuse

layer = Bilinear(8, 4)
h: torch.Tensor = layer(torch.randn(3, 8))
kept: list[tuple[str, str]] = fuse(BilinearMLP(8, 4, 2)).kept
print(explain(layer), kept)
results = bilinear.load_results("runs/p64")
reveal_type(results)
if isinstance(results, bilinear.Results):
    reveal_type(results.models[16, 0])
    reveal_type(results.models[16])
    results.model(16).w_p.sum()
    print(results.table["d_hidden"].max())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True)
    (wheel,) = folder.glob("bilinear-*.whl")
    return wheel


@pytest.mark.slow
def test_a_script_checks_strictly_against_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (site,) = tmp_path.glob("venv/lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (tmp_path / "script.py").write_text(SCRIPT)
    shutil.copy(ROOT / "examples" / "read_a_run.py", tmp_path)
    python = ["--python-executable", str(tmp_path / "venv" / "bin" / "python")]
    command = [sys.executable, "-m", "mypy", "--strict", *python, "script.py", "read_a_run.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "bilinear.results.sweep_results.Results | " in done.stdout
    assert done.stdout.count("dict[str, torch._tensor.Tensor]") == 2


@pytest.mark.slow
def test_a_wheel_holds_the_package_alone(wheel: Path) -> None:
    assert wheel.name.startswith(f"bilinear-{bilinear.__version__}-cp311-abi3-")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"bilinear"}
    for module in (
        "__init__.py",
        "py.typed",
        "page/page.html",
        "training/run.py",
        "kernels/grid_torch.py",
    ):
        assert f"bilinear/{module}" in names
    assert any(name.startswith("bilinear/kernels/_grid_cpu.") for name in names)


def test_library_and_sweep_work_without_triton(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import bilinear.cli.commands\n"
        f"out = {str(tmp_path / 'run')!r}\n"
        "options = '--fused --p 5 --widths 3 --steps 20'.split()\n"
        "sys.exit(bilinear.cli.commands.main([*options, '--out', out]))"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True)


def test_the_layer_needs_the_core_alone(tmp_path: Path) -> None:
    """The sweep's error names the extra to install."""
    missing = ("pandas", "pyarrow", "matplotlib", "rich", "triton")
    code = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({missing}))\n"
        f"runpy.run_path({str(ROOT / 'examples' / 'layer.py')!r})\n"
        "import bilinear, bilinear.cli.commands as commands\n"
        "try: bilinear.sweep(5, steps=3)\n"
        "except ImportError as error: assert \"'bilinear[sweep]'\" in str(error), error\n"
        "sys.exit(commands.main(['--fused', '--p', '5']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "the command needs pip install 'bilinear[sweep]'" in done.stderr


def test_import_is_light() -> None:
    code = (
        "import sys, bilinear\n"
        "heavy = {'torch', 'pandas', 'matplotlib', 'triton'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert bilinear.load_results.__module__ == 'bilinear.results.open'\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_first_call_imports_no_compiler() -> None:
    program = (
        "import sys, torch, bilinear; "
        "bilinear.Bilinear(8, 4)(torch.randn(3, 8)).sum().backward(); "
        "sys.exit('torch._dynamo' in sys.modules or 'triton' in sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, cwd=ROOT)
