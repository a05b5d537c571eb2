"""The page: one file with the weights of its results that loads nothing."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import bilinear
from bilinear.cli.commands import main
from bilinear.errors import ConfigError
from bilinear.page.write import _entries_that_pairs_meet, _fill, make_page, pack24, write_page
from bilinear.reading.fourier import serving_units, unit_amplitudes


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
        assert pack24(torch.cat([tensor.flatten() for tensor in state.values()])) in html


def test_24_bits_are_the_upper_ones_of_float32_rounded() -> None:
    numbers = torch.randn(1000) * torch.logspace(-20, 20, 1000)
    packed = np.frombuffer(base64.b64decode(pack24(numbers)), np.uint8).reshape(-1, 3)
    bits = np.concatenate([np.zeros((1000, 1), np.uint8), packed], axis=1).view("<u4")
    found = torch.from_numpy(bits.view("<f4")[:, 0].copy())
    assert ((found - numbers) / numbers).abs().max() <= 2**-16
    assert found.abs().min() > 0


def test_a_page_of_64_widths_is_at_most_4_mb(tmp_path: Path) -> None:
    """It has as many numbers as the default sweep's, whatever the number of steps."""
    results = bilinear.sweep(64, steps=10, out=tmp_path / "run", progress=False)
    page = write_page(results, tmp_path / "page.html")
    assert len(page.remainders) == 5
    assert page.size < 3.6e6  # a learning curve of 120 points a model is 0.12 MB more


def test_some_widths_alone(tmp_path: Path) -> None:
    results = bilinear.sweep(5, [4, 3, 2], steps=20, out=tmp_path / "run", progress=False)
    made = make_page(results, widths=[4, 2], remainders=[1])
    data = json.loads(re.search(rb'type="application/json">(.*?)</script>', made.html)[1])
    assert data["widths"] == [4, 2]
    assert sorted(data["models"]) == ["2-0", "4-0"]
    assert len(data["all_rows"]) == 3
    with pytest.raises(ConfigError, match=r"widths: expected some of \[2, 3, 4\], got \[5\]"):
        make_page(results, widths=[5])


def test_units_of_a_narrowed_sweep(tmp_path: Path) -> None:
    options = "--fused --narrow --drop norm --tries 1 --redraws 0 --p 7 --widths 6..4 --steps 40"
    assert main([*options.split(), "--out", str(tmp_path / "run")]) == 0
    results = bilinear.load_results(tmp_path / "run")
    html = make_page(results).html
    data = json.loads(re.search(rb'type="application/json">(.*?)</script>', html)[1])
    for d in (6, 5, 4):
        kept = data["models"][f"{d}-0"]["units_kept"]
        assert kept["names"] == results.units[d, 0].tolist()
        largest = np.frombuffer(base64.b64decode(kept["amplitudes"]), "<f4").argmax()
        served = serving_units(results.model(d))
        assert kept["frequencies"] == served.frequency.tolist()
        phases = np.frombuffer(base64.b64decode(kept["phases"]), "<f4")
        assert phases == pytest.approx(served.phase.numpy(), abs=1e-6)
        assert unit_amplitudes(results.model(d)).abs().amax(-1).argmax() == largest


def test_no_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", str(tmp_path)]) == 2
    assert "not a results folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_text_in_the_data_cannot_break_the_page() -> None:
    content = {"task": "<!--<script>", "other": "</script>/*page.js*/<b>"}
    html = _fill(content).decode()
    (data,) = re.findall(r'<script id="data" type="application/json">([^<]*)</script>', html)
    assert "<" not in data
    assert json.loads(data) == content
    assert html.replace(data, "{}") == _fill({}).decode()


def test_the_colour_of_a_full_matrix_is_that_of_entries_which_a_pair_meets() -> None:
    """The diagonal and the block where a meets b: the entries that some input multiplies."""
    p = 3
    met = torch.zeros(2 * p, 2 * p)
    for a in range(p):
        for b in range(p):
            x = torch.zeros(2 * p)
            x[a] = x[p + b] = 1
            met += torch.outer(x, x)
    entries = _entries_that_pairs_meet(met[None].sign())
    assert entries.shape == (1, p**2 + 2 * p)
    assert bool((entries == 1).all())
