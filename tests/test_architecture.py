"""The arrows of the house: which room may import which, and no circle between files.

Imports inside functions count: a lazy import is an arrow as well.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What each room, or file at the top of bilinear/, may import besides itself.
ALLOWED = {
    "errors": set(),
    "reference": set(),
    "kernels": set(),
    "experiment": {"errors"},
    "reading": {"errors"},
    "layer": {"errors", "kernels", "reading", "reference"},
    "results": {"errors", "experiment", "reading"},
    "training": {"errors", "experiment", "kernels", "reading", "reference", "results"},
    "plots": {"errors", "experiment", "reading", "results"},
    "widgets": {"errors", "experiment", "plots", "reading", "results"},
    "page": {"errors", "experiment", "reading", "results"},
    "cli": {"errors", "experiment", "page", "plots", "results", "training"},
    "functional": {"layer"},
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
    """Modules of the library that a module imports anywhere in its text, but for the top itself."""
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


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else name


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_stay_within_the_allowed_rooms(name: str) -> None:
    if name == "bilinear":
        return  # the list of public names points everywhere
    rooms = {room(other) for other in imported(name)} - {room(name)}
    assert rooms <= ALLOWED[room(name)], f"{name} imports {sorted(rooms)}"


def test_no_circle_between_files() -> None:
    arrows = {name: imported(name) for name in FILES if name != "bilinear"}
    while ends := [name for name, targets in arrows.items() if not targets & arrows.keys()]:
        for name in ends:
            del arrows[name]
    assert not arrows, f"circles among {sorted(arrows)}"


def test_the_arrows_are_seen() -> None:
    """The reader of imports itself: absolute, relative, and inside a function."""
    assert "bilinear.experiment.config" in imported("bilinear.training.cpu")
    assert "bilinear.kernels.tiles" in imported("bilinear.kernels.dual")
    assert "bilinear.page.write" in imported("bilinear.cli.commands")
