"""Counts what a user of varying M has the compiler make: one line of JSON, kernel and number.

In a process of its own: Triton must not interpret the kernels here.
"""

import json
import random
from collections import Counter

import torch

from bench.measure.ahead_of_time import specialisation
from bilinear.kernels import dual, mlp, pointwise
from bilinear.kernels.launch import recording


def main() -> None:
    """Forward and backward by every kernel, at sizes the table has several tiles for."""
    seen = set()
    rows = {*range(1, 40), *(random.randrange(1, 30_000) for _ in range(200)), 64, 65, 4096, 16384}
    with recording(lambda start: seen.add(specialisation(start))):
        for m in sorted(rows):
            _launch_all(m, 96, 80, 48)
    print(json.dumps(Counter(one.kernel for one in seen)))


def _launch_all(m: int, d_in: int, d: int, d_out: int) -> None:
    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device="meta")

    x, weight, bias, w_p = empty(m, d_in), empty(2 * d, d_in), empty(2 * d), empty(d_out, d)
    dh, preact, dout = empty(m, d), empty(m, 2 * d), empty(m, d_out)
    dual.dual_forward(x, weight, bias, precision="ieee", save_preact=True)
    dual.dual_backward_input(dh, preact, weight, precision="ieee")
    dual.dual_backward_weight(dh, preact, x, precision="ieee", bias=True)
    mlp.mlp_forward(x, weight, bias, w_p, None, precision="ieee")
    mlp.mlp_backward(dout, x, weight, bias, w_p, precision="ieee")
    pointwise.product_backward(dh, preact, with_h=True)


if __name__ == "__main__":
    main()
