"""The examples run; the notebook runs from its first cell to its last at small settings."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bilinear
from bilinear.reading import fourier, spectra

nbformat = pytest.importorskip("nbformat", reason="needs nbformat")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient")
pytest.importorskip("ipykernel", reason="needs ipykernel")

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples" / "compression.ipynb"
SMALL = "P, WIDTHS, SEEDS, OUT = 7, (12, 10, 8, 6, 4, 2), (0,), 'run'"


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    assert len(tagged) == 1
    tagged[0].source = SMALL
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    assert (tmp_path / "run" / "table.parquet").exists()
    outputs = [output for c in notebook.cells if c.cell_type == "code" for output in c.outputs]
    pictures = [o for o in outputs if "image/png" in o.get("data", ())]
    assert len(pictures) == 4
    assert "application/vnd.jupyter.widget-view+json" in outputs[-1]["data"]
    assert not [o for o in outputs if o.get("name") == "stderr"]


def test_a_run_is_read_in_a_script(tmp_path: Path) -> None:
    bilinear.sweep(7, [16], steps=30, out=tmp_path / "run", progress=False)
    command = [sys.executable, str(ROOT / "examples" / "read_a_run.py"), "run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    eigenvalues, frequencies = done.stdout.splitlines()
    results = bilinear.Results(tmp_path / "run")
    q = results.interaction(16, 5).double()
    assert str(spectra.eigenvalues(results.model(16), 5)[0].item()) in eigenvalues
    assert spectra.eigenvalues(results.model(16), 5)[0].abs().item() == pytest.approx(
        torch.linalg.matrix_norm(q, 2).item(), rel=1e-4
    )
    assert frequencies.endswith(str(fourier.frequencies(results.model(16)).tolist()))
    assert (tmp_path / "q5.png").read_bytes().startswith(b"\x89PNG")


def test_committed_outputs_are_small() -> None:
    assert NOTEBOOK.stat().st_size < 600_000
