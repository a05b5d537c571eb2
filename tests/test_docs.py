"""What the documentation says runs: recipes, examples in docstrings, the site and its links."""

import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "bilinear").rglob("*.py")
    if "kernels" not in path.parts and ">>> " in path.read_text(encoding="utf-8")
)


def test_recipes_run_from_the_first_to_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == len(re.findall(r"^## ", text, re.MULTILINE)) == 5
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "recipes.md", "exec"), names)
    said = capsys.readouterr().out
    assert "without it" in said
    assert "replaced 1, kept 0" in said
    assert (tmp_path / "q5.png").exists()


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert found.attempted > 0
    assert found.failed == 0


def test_there_are_examples_where_people_begin() -> None:
    wanted = {"cli.sweep", "layer.fuse", "layer.modules", "reading.fourier", "reading.spectra"}
    assert {f"bilinear.{name}" for name in wanted} <= set(WITH_EXAMPLES)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings", reason="needs mkdocs-material and mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", tmp_path]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    reading = (tmp_path / "reference" / "reading" / "index.html").read_text(encoding="utf-8")
    assert 'id="bilinear.reading.fourier.frequencies"' in reading


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/*.md"])
def test_links_lead_somewhere(page: str) -> None:
    for path in ROOT.glob(page):
        text = path.read_text(encoding="utf-8")
        links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
        missing = [
            link for link in links if "://" not in link and not (path.parent / link).exists()
        ]
        assert not missing, f"{path.name}: {missing}"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/*.md"])
def test_files_that_are_named_are_there(page: str) -> None:
    for path in ROOT.glob(page):
        text = path.read_text(encoding="utf-8")
        named = re.findall(
            r"\b(?:bench|bilinear|kernels|tests|docs|examples)/[\w/.-]+\.\w+\b", text
        )
        files = [name for name in named if "ROOM" not in name and "FILE" not in name]
        missing = sorted({name for name in files if not (ROOT / name).exists()})
        assert not missing, f"{path.name}: {missing}"
