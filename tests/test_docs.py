"""Examples in the documentation run, the site builds, links, file names and figures are right."""

import doctest
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.measure.environment import RESULTS
from bench.verdicts import contests

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
    output = capsys.readouterr().out
    assert "without it" in output
    assert "replaced 1, kept 0" in output
    assert (tmp_path / "q5.png").exists()


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


def test_the_main_functions_have_examples() -> None:
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
def test_links_point_to_existing_files(page: str) -> None:
    for path in ROOT.glob(page):
        text = path.read_text(encoding="utf-8")
        links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
        missing = [
            link for link in links if "://" not in link and not (path.parent / link).exists()
        ]
        assert not missing, f"{path.name}: {missing}"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/*.md"])
def test_named_files_exist(page: str) -> None:
    for path in ROOT.glob(page):
        text = path.read_text(encoding="utf-8")
        named = re.findall(
            r"\b(?:bench|bilinear|kernels|tests|docs|examples)/[\w/.-]+\.\w+\b", text
        )
        files = [name for name in named if "FOLDER" not in name and "FILE" not in name]
        missing = sorted({name for name in files if not (ROOT / name).exists()})
        assert not missing, f"{path.name}: {missing}"


def test_decisions_quote_the_committed_contests() -> None:
    """Its tables of the training step, the layer's times on three machines, and its memory."""
    content = json.loads((RESULTS / "cpu.json").read_text())
    found = {contest.group: contest for contest in contests(content)}
    machines = [found]
    for name in ("layer_intel.json", "layer_zen3.json"):
        others = contests(json.loads((RESULTS / name).read_text()))
        machines.append({contest.group: contest for contest in others})
    steps = [found[f"5 steps of 8 models, d={d}"] for d in (8, 16, 64)]
    rows = [
        [
            "µs a step a model, 2 threads, AVX-512",
            *(f"{s.ours.median / 40 * 1e6:.0f}" for s in steps),
        ],
        [
            "GFLOP/s of the nominal 6·P³·d",
            *(f"{s.ours.notes['nominal GFLOP/s']:.0f}" for s in steps),
        ],
    ]
    for peer, name in (
        ("vmap", "a `torch.func.vmap` ensemble"),
        ("bmm", "a bmm ensemble under autograd"),
    ):
        ratios = (f"{s.against(s.ways[peer])[0]:.1f}" for s in steps)
        rows.append([f"times faster than {name}", *ratios])
    for shape in ((64, 128, 64), (4096, 128, 64), (4096, 256, 512), (16384, 64, 512)):
        sizes = ", ".join(map(str, shape))
        groups = [
            f"{op} {direction}, M, d_in, d = {shape}"
            for direction in ("forward", "forward and backward")
            for op in ("layer", "mlp")
        ]
        for machine in machines:
            ratios = [machine[group].ratio for group in groups]
            rows.append([sizes, *(f"{r:.2f} ({low:.2f}–{high:.2f})" for r, low, high in ratios)])
        memory = [found[f"memory, {op}, M, d_in, d = {shape}"].ways for op in ("layer", "mlp")]
        peaks = (
            ways["fused"].notes["peak bytes"] / ways["eager"].notes["peak bytes"] for ways in memory
        )
        rows.append([sizes, *(f"{peak:.2f}" for peak in peaks)])
    page = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8").splitlines()
    assert [row for row in rows if f"| {' | '.join(row)} |" not in page] == []
