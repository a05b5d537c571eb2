"""What an installation holds, and what an import costs."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_beside_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(tmp_path)]
    subprocess.run([*command, str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("bilinear-*.whl")
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
