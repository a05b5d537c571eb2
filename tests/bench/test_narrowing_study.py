"""`margins`, which shares no code with the library, finds the committed chain right."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from bench.studies.narrowing import margins
from bilinear.reading.exact_circuit import exact_state_dict, smallest_margin

CHAIN = Path(__file__).parents[2] / "docs" / "findings" / "chain" / "models"


def test_margins_of_the_exact_circuit() -> None:
    circuit = {name: w.numpy() for name, w in exact_state_dict(13, 2).items()}
    least = margins(circuit, np.float64).min()
    assert least == pytest.approx(smallest_margin(13), rel=1e-5)
    circuit["projection.weight"][3] = circuit["projection.weight"][4]
    wrong = margins(circuit, np.float64)
    a, b = np.indices((13, 13))
    assert (wrong[(a + b) % 13 == 3] <= 0).all()  # ties are wrong


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_model_narrowed_to_two_units_is_right_on_every_pair(dtype: type) -> None:
    for d in (64, 16, *range(8, 1, -1)):
        weights = safetensors.numpy.load_file(CHAIN / f"d{d:03d}-s0004.safetensors")
        assert weights["bi_linear.weight"].shape == (2 * d, 128)
        assert (margins(weights, dtype) > 0).all(), d
