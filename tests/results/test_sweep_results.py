"""What a reader gets of a sweep's folder: models, matrices by remainder, and errors."""

import pytest
import torch

import bilinear
from bilinear.errors import ConfigError
from bilinear.experiment.task import modular_addition
from bilinear.reading import fourier, spectra

P = 7


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> bilinear.Results:
    out = tmp_path_factory.mktemp("results") / "run"
    options = {"steps": 40, "remainders": (3, 0)}
    return bilinear.sweep(P, [6, 4], [5, 2], out=out, progress=False, **options)


def test_a_model_computes_and_requires_no_gradient(results: bilinear.Results) -> None:
    model = results.model(6)
    assert model.state_dict().keys() == results.models[6, 5].keys()  # the first seed's
    assert torch.equal(model.w_p, results.models[6]["projection.weight"])
    x, label = modular_addition(P).tensors
    logits = model(x)
    assert not logits.requires_grad
    right = (logits.argmax(1) == label).double().mean().item()
    row = results.table.query("d_hidden == 6 and seed == 5").iloc[0]
    assert right == pytest.approx(row["full_acc"])
    assert torch.equal(results.model(6, 2).w_p, results.models[6, 2]["projection.weight"])
    assert spectra.eigenvalues(model, output=5).shape == (12,)
    assert fourier.frequency_shares(model).shape == (P // 2 + 1,)


def test_matrices_by_remainder_kept_or_not(results: bilinear.Results) -> None:
    x, _ = modular_addition(P).tensors
    for remainder in range(P):
        q = results.interaction(4, remainder, seed=2)
        logits = results.model(4, 2)(x)[:, remainder]
        torch.testing.assert_close(torch.einsum("ni,ij,nj->n", x, q, x), logits)
    assert torch.equal(results.interaction(4, 0), results.interactions[4][1])


@pytest.mark.parametrize("remainder", [7, -1, 1.5])
def test_a_remainder_that_is_none(results: bilinear.Results, remainder: int) -> None:
    with pytest.raises(ConfigError, match=f"remainder: expected 0 to 6, got {remainder}"):
        results.interaction(4, remainder)


def test_a_model_that_is_not_there(results: bilinear.Results) -> None:
    for read in (
        lambda: results.model(5),
        lambda: results.models[6, 0],
        lambda: results.interaction(6, 3, seed=1),
        lambda: results.histories[99],
    ):
        with pytest.raises(KeyError, match=r"model: expected \(d_hidden, seed\) of .*not in it"):
            read()
    assert (6, 5) in results.models
    assert (6, 0) not in results.models
