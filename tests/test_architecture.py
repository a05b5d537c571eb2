"""Which part of the library may import which, no circular imports, a test file for every file.

A part is a folder of bilinear/, or a file at its top. Imports inside functions count.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The other parts that each part may import.
ALLOWED = {
    "errors": set(),
    "reference": set(),
    "kernels": set(),
    "experiment": {"errors"},
    "reading": {"errors"},
    "layer": {"errors", "kernels", "reading", "reference"},
    "results": {"errors", "experiment", "reading", "reference"},
    "training": {"errors", "experiment", "kernels", "reading", "reference", "results"},
    "plots": {"errors", "experiment", "reading", "results"},
    "widgets": {"errors", "experiment", "page", "plots", "reading", "results"},
    "page": {"errors", "experiment", "reading", "results"},
    "cli": {"errors", "experiment", "page", "plots", "results", "training"},
    "functional": {"layer"},
    "hub": {"layer"},
    "parallel": {"functional", "layer"},
    "__main__": {"cli"},
}


def files() -> dict[str, Path]:
    """Every module of the library by its dotted name; kernels/ under the name it is imported by."""
    library = dict.fromkeys((ROOT / "bilinear").rglob("*.py"), "bilinear")
    found = {path: path.relative_to(ROOT) for path in library if "kernels" not in path.parts}
    found |= {p: Path("bilinear") / p.relative_to(ROOT) for p in (ROOT / "kernels").glob("*.py")}
    names = {path: ".".join(relative.with_suffix("").parts) for path, relative in found.items()}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


FILES = files()


def imported(name: str) -> set[str]:
    """Modules of the library that a module imports anywhere in its text, without `bilinear`."""
    package = name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: -node.level + 1 or None]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found.update(f"{module}.{alias.name}" for alias in node.names)
    owners = {next((m for m in (f, f.rpartition(".")[0]) if m in FILES), "") for f in found}
    return owners - {"", "bilinear", name}


def part(name: str) -> str:
    return name.split(".")[1] if "." in name else name


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_stay_within_the_allowed_parts(name: str) -> None:
    if name == "bilinear":
        return  # it lists the public names of all parts
    parts = {part(other) for other in imported(name)} - {part(name)}
    assert parts <= ALLOWED[part(name)], f"{name} imports {sorted(parts)}"


def test_no_circular_imports() -> None:
    imports = {name: imported(name) for name in FILES if name != "bilinear"}
    while leaves := [name for name, others in imports.items() if not others & imports.keys()]:
        for name in leaves:
            del imports[name]
    assert not imports, f"circular imports among {sorted(imports)}"


def test_imported_finds_every_kind_of_import() -> None:
    """Absolute, relative, and inside a function."""
    assert "bilinear.experiment.config" in imported("bilinear.training.cpu")
    assert "bilinear.kernels.tiles" in imported("bilinear.kernels.dual")
    assert "bilinear.page.write" in imported("bilinear.cli.commands")


# Where files are tested that have no test file of their own name in the folder of the same name.
TESTED_ELSEWHERE = {
    "bilinear/__main__.py": "tests/test_packaging.py",
    "bilinear/cli/commands.py": "tests/test_command.py",
    "bilinear/cli/options.py": "tests/test_command_study.py",
    "bilinear/cli/session.py": "tests/cli/test_runs.py",
    "bilinear/cli/durations.py": "tests/training/forecast/test_estimate.py",
    "bilinear/cli/start.py": "tests/cli/test_signals.py",
    "bilinear/errors.py": "tests/test_command.py",
    "bilinear/experiment/cost.py": "tests/bench/test_least_work.py",
    "bilinear/experiment/presets.py": "tests/test_command.py",
    "bilinear/experiment/streams.py": "tests/experiment/test_task.py",
    "bilinear/experiment/study.py": "tests/test_command_study.py",
    "bilinear/functional.py": "tests/layer/test_functional.py",
    "bilinear/layer/call.py": "tests/layer/test_select.py",
    "bilinear/layer/fused_modules.py": "tests/layer/test_fuse_adversaries.py",
    "bilinear/layer/rows.py": "tests/layer/test_functional.py",
    "bilinear/reference.py": "tests/layer/test_modules.py",
    "bilinear/results/export_notebook.py": "tests/test_command.py",
    "bilinear/results/open.py": "tests/test_command.py",
    "bilinear/results/study_results.py": "tests/test_command_study.py",
    "bilinear/results/writer.py": "tests/test_command.py",
    "bilinear/training/backend.py": "tests/training/test_cpu.py",
    "bilinear/training/choose.py": "tests/test_command.py",
    "bilinear/training/drops.py": "tests/training/test_chains.py",
    "bilinear/training/engine.py": "tests/training/test_ray_cluster.py",
    "bilinear/training/forecast/expected_steps.py": "tests/training/forecast/test_estimate.py",
    "bilinear/training/forecast/rate_cache.py": "tests/training/forecast/test_calibration.py",
    "bilinear/training/notebook.py": "tests/test_command.py",
    "bilinear/training/run.py": "tests/test_command.py",
    "kernels/dual_device.py": "tests/kernels/test_dual.py",
    "kernels/grid_device.py": "tests/kernels/test_grid_triton.py",
    "kernels/grid_torch.py": "tests/kernels/test_grid_cpu.py",
    "kernels/launch.py": "tests/kernels/test_launches.py",
    "kernels/mlp_device.py": "tests/kernels/test_mlp.py",
    "kernels/products.py": "tests/kernels/test_dual.py",
    "kernels/tiles.py": "tests/kernels/test_dispatch.py",
    "kernels/tune.py": "tests/kernels/test_dispatch.py",
}


def test_every_file_has_a_test_file() -> None:
    missing, needless = [], []
    for path in FILES.values():
        name = str(path.relative_to(ROOT))
        if path.name == "__init__.py":
            continue
        own = ROOT / "tests" / name.removeprefix("bilinear/")
        has_own = own.with_name(f"test_{own.name}").exists()
        elsewhere = TESTED_ELSEWHERE.get(name)
        if has_own and elsewhere:
            needless.append(name)
        if not has_own and not (elsewhere and (ROOT / elsewhere).exists()):
            missing.append(name)
    assert (missing, needless) == ([], [])
    assert all((ROOT / name).exists() for name in TESTED_ELSEWHERE)


def test_the_paths_through_the_code_are_short_and_name_existing_files() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    paths = [re.findall(r"^\d\. `([^`]+)`", part, re.MULTILINE) for part in text.split("\n## ")[1:]]
    assert [len(path) for path in paths] == [7, 8]
    for path in paths:
        assert len(set(path)) == len(path) <= 8
        assert all((ROOT / name).is_file() for name in path), path
