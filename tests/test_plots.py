"""Pictures draw what the library computes, on scales that are the same for every model."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver

import bilinear
from bilinear import plots
from bilinear.cli.commands import main
from bilinear.reading.fourier import frequency_shares, serving_units
from bilinear.reading.interactions import interaction_matrices
from bilinear.reading.similarity import functional_similarity
from bilinear.results.sweep_results import Results

P = 11
WIDTHS = (12, 7, 3)
SWEEP = "--fused --p 11 --widths 12,7,3 --seeds 2 --steps 60 --remainders 3,0"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    out = tmp_path_factory.mktemp("plots") / "run"
    assert main([*SWEEP.split(), "--out", str(out)]) == 0
    return bilinear.load_results(out)


@pytest.fixture
def ax() -> Iterator[Axes]:
    """An Axes that is rendered after the test; its axes and colour bars must have labels."""
    figure = Figure(layout="constrained")
    canvas = FigureCanvasAgg(figure)
    ax = figure.subplots()
    yield ax
    canvas.draw()
    assert ax.get_xlabel()
    for scale in figure.axes[1:]:
        assert scale.get_ylabel(), "a colour bar without its unit"


def weights(results: Results, d: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    state = results.models[d, seed]
    return (*state["bi_linear.weight"].double().chunk(2), state["projection.weight"].double())


def assert_symmetric(ax: Axes, limit: float) -> None:
    image = ax.images[0]
    assert image.get_clim() == pytest.approx((-limit, limit))
    assert image.get_cmap()(image.norm(0.0))[:3] == pytest.approx((0.97, 0.97, 0.97), abs=0.03)


def test_accuracy(results: Results, ax: Axes) -> None:
    assert plots.accuracy_against_width(results.table, ax, p=64) is ax
    median = results.table.groupby("d_hidden")["full_acc"].median()
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 1 - median)
    notebook = ax.collections[-1].get_offsets()[:, 0]
    assert tuple(notebook) == plots.NOTEBOOK_PERFECT_WIDTHS


def test_learning_curves(results: Results, ax: Axes) -> None:
    assert plots.learning_curves(results, ax, widths=(12, 3)) is ax
    assert len(ax.lines) == 4
    history = results.histories[12, 1]
    np.testing.assert_allclose(ax.lines[1].get_ydata(), 1 - history["val_acc"])
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), history["step"])
    with pytest.raises(ValueError, match="got 5"):
        plots.learning_curves(results, ax, widths=(5,))


def test_losses(results: Results, ax: Axes) -> None:
    plots.learning_curves(results, ax, widths=(12,), column="train_loss")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), results.histories[12, 0]["train_loss"])
    assert ax.get_ylabel() == "training loss [nats]"


def test_eigenspectra_are_those_of_the_dense_matrices(results: Results, ax: Axes) -> None:
    assert plots.eigenspectra(results, ax, widths=WIDTHS, remainder=5, limit=2.0) is ax
    assert_symmetric(ax, 2.0)
    shown = ax.images[0].get_array()
    for row, d in zip(shown, WIDTHS, strict=True):
        dense = torch.linalg.eigvalsh(interaction_matrices(weights(results, d), 5))
        strongest = dense[dense.abs().argsort(descending=True)][: min(16, 2 * d)].numpy()
        np.testing.assert_allclose(row.compressed()[: len(strongest)], strongest, atol=1e-8)
    assert shown.mask[2, 6:].all()  # width 3 has six eigenvalues
    assert "full Q" in ax.get_title()


def test_eigenvectors_are_split_between_a_and_b(results: Results, ax: Axes) -> None:
    assert plots.eigenvectors(results, ax, width=7, remainder=5, seed=1, n_shown=3) is ax
    assert_symmetric(ax, 2 / np.sqrt(2 * P))
    assert ax.lines[0].get_xdata()[0] == P - 0.5
    q = interaction_matrices(weights(results, 7, 1), 5).numpy()
    shown = np.asarray(ax.images[0].get_array())
    assert shown.shape == (3, 2 * P)
    values = np.einsum("ki,ij,kj->k", shown, q, shown)
    np.testing.assert_allclose(shown @ q, values[:, None] * shown, atol=1e-8)
    assert [t.get_text() for t in ax.get_yticklabels()] == [f"λ = {v:.3g}" for v in values]


def test_frequency_map(results: Results, ax: Axes) -> None:
    assert plots.frequency_map(results, ax, seed=1) is ax
    shown = np.asarray(ax.images[0].get_array())
    assert shown.shape == (P // 2, len(WIDTHS))
    expected = frequency_shares(weights(results, 7, 1))[1:].numpy()
    np.testing.assert_allclose(shown[:, 1], expected, atol=1e-6)
    with pytest.raises(ValueError, match="seed: expected one of"):
        plots.frequency_map(results, ax, seed=9)


def test_similarity_map(results: Results, ax: Axes) -> None:
    assert plots.similarity_map(results, ax) is ax
    assert_symmetric(ax, 1.0)
    expected = functional_similarity(weights(results, d) for d in WIDTHS).numpy()
    np.testing.assert_allclose(ax.images[0].get_array(), expected, atol=1e-5)


def test_interaction_matrices_share_one_scale(results: Results) -> None:
    figure = Figure()
    axes = figure.subplots(2, 2)
    matrices = torch.stack([results.interactions[d, 0] for d in (12, 3)])
    plots.interaction_grid(matrices, (12, 3), (3, 0), axes)
    limits = {ax.images[0].get_clim() for ax in axes.flat}
    assert len(limits) == 1
    assert sum(limits.pop()) == 0


def test_summary_pictures_are_there(results: Results) -> None:
    for name in ("accuracy.png", "interactions.png"):
        assert Path(results.path / name).read_bytes().startswith(b"\x89PNG")


def test_a_chain_of_units(tmp_path: Path, ax: Axes) -> None:
    """One tick per unit and width, at the angle of the phase; a row ends where its unit goes."""
    command = "--fused --narrow --p 11 --widths 6,5,3 --tries 1 --redraws 1 --steps 60"
    assert main([*command.split(), "--out", str(tmp_path / "run")]) == 0
    results = bilinear.load_results(tmp_path / "run")
    assert (tmp_path / "run" / "chain.png").read_bytes().startswith(b"\x89PNG")
    assert isinstance(results, Results)
    assert plots.chain_of_units(results, ax) is ax
    ticks, ends = ax.collections
    assert isinstance(ticks, Quiver)
    names = [set(results.units[d, 0].tolist()) for d in (6, 5, 3)]
    assert len(ticks.U) == 6 + 5 + 3
    phases = torch.cat([serving_units(results.models[d, 0]).phase for d in (6, 5, 3)])
    np.testing.assert_allclose(np.arctan2(ticks.V, ticks.U), phases, atol=1e-6)
    assert len(ends.get_offsets()) == len(set.union(*names) - names[-1])


def test_units_of_zero_weight_are_called_silent(ax: Axes) -> None:
    chain = bilinear.load_results(Path(__file__).parents[1] / "docs" / "findings" / "chain")
    assert isinstance(chain, Results)
    plots.chain_of_units(chain, ax)
    labels = [text.get_text() for text in ax.texts]
    assert labels[:5] == ["k = 31"] * 3 + ["silent"] * 2
    assert "k = 0" not in labels
