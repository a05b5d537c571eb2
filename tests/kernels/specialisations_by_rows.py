"""Counts the kernels that are compiled for a user of varying M: one line of JSON.

By layout of x ("rows" or "columns" contiguous) and arithmetic, how many of each kernel. In a
process of its own: Triton must not interpret the kernels here.
"""

import json
import random
from collections import Counter

import torch

from bench.measure.ahead_of_time import Specialisation, specialisation
from bilinear.kernels import dual, mlp, pointwise
from bilinear.kernels.launch import recording

# float32 in both of torch's settings.
KINDS = {
    "half": (torch.bfloat16, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "ieee": (torch.float32, "ieee"),
}


def main() -> None:
    """Forward and backward by every kernel, at sizes for which the table has several tiles."""
    rows = {*range(1, 40), *(random.randrange(1, 30_000) for _ in range(200)), 64, 65, 4096, 16384}
    counts = {}
    for layout in ("rows", "columns"):
        for kind, (dtype, precision) in KINDS.items():
            seen: set[Specialisation] = set()
            with recording(lambda start, seen=seen: seen.add(specialisation(start))):  # type: ignore[misc]
                for m in sorted(rows):
                    _launch_all(m, 96, 80, 48, layout, dtype, precision)
            counts[f"{layout}, {kind}"] = Counter(one.kernel for one in seen)
    print(json.dumps(counts))


def _launch_all(
    m: int, d_in: int, d: int, d_out: int, layout: str, dtype: torch.dtype, precision: str
) -> None:
    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x = empty(m, d_in) if layout == "rows" else empty(d_in, m).t()
    weight, bias, w_p = empty(2 * d, d_in), empty(2 * d), empty(d_out, d)
    dh, preact, dout = empty(m, d), empty(m, 2 * d), empty(m, d_out)
    dual.dual_forward(x, weight, bias, precision=precision, save_preact=True)
    dual.dual_backward_input(dh, preact, weight, precision=precision)
    dual.dual_backward_weight(dh, preact, x, precision=precision, bias=True)
    mlp.mlp_forward(x, weight, bias, w_p, None, precision=precision)
    mlp.mlp_backward(dout, x, weight, bias, w_p, precision=precision)
    pointwise.product_backward(dh, preact, with_h=True)


if __name__ == "__main__":
    main()
