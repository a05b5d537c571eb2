"""The example notebook runs, from its first cell to its last, at small settings."""

from pathlib import Path

import pytest

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


def test_committed_outputs_are_small() -> None:
    assert NOTEBOOK.stat().st_size < 600_000
