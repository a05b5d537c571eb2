"""FLOP and bytes in least_work agree with PyTorch's counters."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.measure import least_work, peers
from bench.measure.layer_ways import contestants, inputs
from bilinear.experiment.config import SweepConfig


@pytest.mark.parametrize("direction", least_work.DIRECTIONS)
@pytest.mark.parametrize("op", peers.OPS)
def test_layer_flop_are_its_matmuls_and_products(op: str, direction: str) -> None:
    m, d_in, d = 11, 7, 5
    call = contestants(op, (m, d_in, d), ("eager",), direction)["eager"]
    with FlopCounterMode(display=False) as counter:
        call()
    elementwise = m * d * (1 if direction == "forward" else 3)
    least = least_work.DIRECTIONS[direction](m, d_in, d, d_in if op == "mlp" else None)
    assert least.flop == counter.get_total_flops() + elementwise


@pytest.mark.parametrize("op", peers.OPS)
def test_layer_bytes_are_what_goes_in_and_comes_out(op: str) -> None:
    m, d_in, d = 11, 7, 5
    tensors = inputs(op, (m, d_in, d))
    out = peers.EAGER[op](*tensors)
    gradients = torch.autograd.grad(out.sum(), tensors)
    d_out = d_in if op == "mlp" else None
    ins, grads = (sum(t.nbytes for t in some) for some in (tensors, gradients))
    assert least_work.forward(m, d_in, d, d_out).moved == ins + out.nbytes
    # Backward reads the inputs and the output's gradient, and writes the inputs' gradients.
    both = ins + out.nbytes + ins + out.nbytes + grads
    assert least_work.forward_and_backward(m, d_in, d, d_out).moved == both


def test_steps_count_pairs_trained_on_and_three_tensors_of_state() -> None:
    config = SweepConfig(p=7, widths=(3, 2), remainders=())
    least = least_work.steps(config, config.widths, 10)
    assert least.flop == 10 * 6 * config.n_train * 7 * (3 + 2)
    weights = 5 * 7 * (3 + 2)
    assert least.moved == 10 * 3 * 2 * 4 * weights
    whole = least + least_work.evaluations(config, config.widths, 1)
    assert whole.flop - least.flop == 2 * 7**3 * 5
    assert whole.moved - least.moved == 4 * weights
