"""Every form of a model gives the same weights, and errors name what does not fit."""

from typing import Any

import pytest
import torch

from bilinear import BilinearMLP
from bilinear.reading import fourier, interactions, similarity, spectra
from bilinear.reading.exact_circuit import exact_circuit, exact_state_dict
from bilinear.reading.weights import weights_of
from bilinear.reference import Model, ModelConfig


def test_every_form_of_a_model_is_the_same_weights() -> None:
    model = Model(ModelConfig(p=5, d_hidden=3, bias=True))
    mlp = BilinearMLP(10, 3, 5)
    mlp.load_state_dict({k: v for k, v in model.state_dict().items() if "bias" not in k})
    three = (model.w_l, model.w_r, model.w_p)
    forms = (model, mlp, model.state_dict(), three, list(three), weights_of(model)._asdict())
    for form in forms:
        for found, expected in zip(weights_of(form), three, strict=True):
            assert torch.equal(found, expected)
    assert not any(w.requires_grad for w in (*weights_of(model), *weights_of(model.state_dict())))
    assert all(w.requires_grad for w in weights_of(three))  # tensors keep their graph


def test_a_single_output_has_no_dimension_of_its_own() -> None:
    model = Model(ModelConfig(p=7, d_hidden=4))
    for read in (
        interactions.interaction_matrices,
        interactions.cross_block,
        interactions.logit_table,
        spectra.eigenvalues,
        lambda m, output=None: spectra.eigenpairs(m, output).values,
    ):
        every = read(model)
        torch.testing.assert_close(read(model, output=5), every[5])
        torch.testing.assert_close(read(model, output=[5, 2]), every[[5, 2]])


SIDE, OUT = torch.randn(3, 10), torch.randn(5, 3)


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        ("abc", TypeError, "model: expected a model with w_l, w_r and w_p.*got str"),
        (torch.nn.Linear(3, 2), TypeError, "model: expected a model .* got Linear"),
        ((SIDE, SIDE), TypeError, "model: expected w_l, w_r and w_p, got 2 items"),
        ((SIDE, SIDE.numpy(), OUT), TypeError, "w_r: expected a tensor, got ndarray"),
        ((SIDE, SIDE.double(), OUT), TypeError, "w_r: expected one floating dtype"),
        ((SIDE.int(), SIDE.int(), OUT.int()), TypeError, "w_l: expected one floating dtype"),
        ((SIDE, SIDE, OUT.mT), ValueError, r"w_p: expected \(…, d_out, d\) = .* 3\), got \(3, 5\)"),
        ((SIDE, SIDE[:2], OUT), ValueError, "w_l, w_r: expected one shape"),
        ((SIDE, SIDE.to("meta"), OUT), ValueError, "w_r: expected w_l's device cpu, got meta"),
        (
            {"weight": SIDE},
            ValueError,
            r"model: expected a state dict .* got the keys \['weight'\]",
        ),
        (
            {"bi_linear.weight": SIDE, "projection.weight": OUT},
            ValueError,
            r"bi_linear.weight: expected \(2d, d_in\), got \(3, 10\)",
        ),
    ],
)
def test_what_is_no_model(model: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        weights_of(model)


@pytest.mark.parametrize("output", [5, -1, [0, 5], 1.5, "a"])
def test_an_output_that_is_not_there(output: Any) -> None:
    with pytest.raises(ValueError, match="output: expected integers from 0 to 4, got"):
        spectra.eigenvalues(exact_state_dict(5), output=output)


def test_similarity_wants_several_models_of_one_task() -> None:
    circuit = exact_circuit(5)
    one = (circuit, tuple(circuit.values()), Model(ModelConfig(5, 2)), circuit["w_l"])
    for model in one:
        with pytest.raises(TypeError, match="models: expected a list of models to compare, got"):
            similarity.functional_similarity(model)
    with pytest.raises(ValueError, match="got an empty one"):
        similarity.tensor_similarity([])
    with pytest.raises(ValueError, match=r"models: expected one \(d_in, d_out\)"):
        similarity.functional_similarity([circuit, exact_circuit(7)])


def test_frequencies_are_of_one_model() -> None:
    batch = tuple(w.expand(2, *w.shape) for w in exact_circuit(5).values())
    with pytest.raises(ValueError, match="model: expected one model"):
        fourier.frequencies(batch)
    assert fourier.frequency_shares(batch).shape == (2, 3)
