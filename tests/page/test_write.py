"""The page: whole, self-contained, and made of the results it was given."""

import base64
import re
from pathlib import Path

import pytest
import torch

import bilinear
from bilinear.cli.commands import main


def test_page_holds_the_weights_and_loads_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--fused", "--p", "7", "--widths", "6..4", "--steps", "60", "--out", str(out)]
    assert main(options) == 0
    assert main(["view", str(out), "--no-open"]) == 0
    html = (out / "view.html").read_text(encoding="utf-8")
    assert len(html) < 15_000_000
    assert not re.search(r"<(script|link|img)[^>]*\b(src|href)=[\"']?(https?:)?//", html)
    models = bilinear.load_results(out).models
    for state in models.values():
        numbers = torch.cat([tensor.flatten() for tensor in state.values()]).numpy()
        assert base64.b64encode(numbers.astype("<f4").tobytes()).decode() in html


def test_no_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", str(tmp_path)]) == 2
    assert "not a results folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
