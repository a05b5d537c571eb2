import torch

from bilinear.reading.interactions import interaction_matrices, logit_table
from bilinear.reading.similarity import functional_similarity, tensor_similarity


def model(d: int, p: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    double = torch.float64
    return (
        torch.randn(d, 2 * p, dtype=double),
        torch.randn(d, 2 * p, dtype=double),
        torch.randn(p, d, dtype=double),
    )


def cosine(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0)


def test_cosines_of_models_of_different_widths() -> None:
    models = [model(d) for d in (1, 4, 7)]
    functional, full = functional_similarity(models), tensor_similarity(models)
    tables = [logit_table(m) for m in models]
    tables = [t - t.mean(dim=0) for t in tables]
    tensors = [interaction_matrices(m) for m in models]
    for i in range(3):
        for j in range(3):
            torch.testing.assert_close(
                functional[i, j], cosine(tables[i], tables[j]), rtol=1e-5, atol=1e-6
            )
            torch.testing.assert_close(full[i, j], cosine(tensors[i], tensors[j]))


def test_rescaled_and_shuffled_units_are_the_same_model() -> None:
    w_l, w_r, w_p = model(4)
    order, scale = torch.randperm(4), torch.rand(4, 1).double() + 0.5
    same = (w_r[order] * scale, w_l[order], 3 * w_p[:, order] / scale[:, 0])
    for similarity in (functional_similarity, tensor_similarity):
        torch.testing.assert_close(
            similarity([(w_l, w_r, w_p), same]), torch.ones(2, 2).double(), rtol=1e-5, atol=1e-5
        )


def test_functional_similarity_is_blind_to_the_gauge() -> None:
    """The added unit multiplies inputs a = 0 and a = 1, of which a pair has at most one."""
    w_l, w_r, w_p = model(3)
    dead_l, dead_r = torch.zeros(1, 10).double(), torch.zeros(1, 10).double()
    dead_l[0, 0], dead_r[0, 1] = 4, 4
    more = (torch.cat([w_l, dead_l]), torch.cat([w_r, dead_r]), torch.randn(5, 4).double())
    more[2][:, :3] = w_p
    functional = functional_similarity([(w_l, w_r, w_p), more])
    assert functional[0, 1] > 1 - 1e-6
    assert tensor_similarity([(w_l, w_r, w_p), more])[0, 1] < 0.99
