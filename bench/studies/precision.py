"""Which products reproduce the reference's learning curve? `python -m bench.studies.precision`.

Trains a few models for 200 steps of the default recipe in float64, and in float32 with emulated
matrix products of a GPU's tensor cores. Their operands are rounded to tf32, or split into two or
three bfloat16 parts whose products are summed in float32. As in the kernel, W_p is multiplied by
log₂ e before the logits are computed, and softmax uses 2ˣ with the error of the GPU's instruction.
Writes the largest relative difference of the training loss, evaluated every ten steps.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bench.measure.environment import write_result
from bilinear.experiment.config import SweepConfig
from bilinear.experiment.initial_weights import initial_weights
from bilinear.experiment.record import Job
from bilinear.experiment.task import split_pairs
from bilinear.kernels.grid_torch import TorchGridModel
from bilinear.training.cpu import make_model

SIZES = [(64, 64), (64, 16), (64, 8), (59, 12)]
STEPS, EVERY = 200, 10
LOG2E, LN2 = 1.4426950408889634, 0.6931471805599453
# Relative error of ex2.approx.ftz.f32 (PTX ISA), and its smallest nonzero result.
_EXP2_ERROR, _LEAST = 2**-22, 2**-126


def _tf32(x: Tensor) -> Tensor:
    """Round to nearest even at 10 bits after the leading one."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def _parts(x: Tensor, n: int) -> list[Tensor]:
    found = []
    for _ in range(n):
        found.append(x.bfloat16().float())
        x = x - found[-1]
    return found


def _by_parts(n: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Sum of the products of parts i and j with i + j < n, smallest first."""

    def product(x: Tensor, y: Tensor) -> Tensor:
        xs, ys = _parts(x, n), _parts(y, n)
        pairs = [(i, j) for i in range(n) for j in range(n) if i + j < n]
        pairs.sort(key=sum, reverse=True)
        return sum(torch.matmul(xs[i], ys[j]) for i, j in pairs)  # type: ignore[return-value]

    return product


PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "float32": torch.matmul,
    "bf16x6": _by_parts(3),
    "bf16x3": _by_parts(2),
    "tf32": lambda x, y: torch.matmul(_tf32(x), _tf32(y)),
}


def _softmax(bits: Tensor) -> Tensor:
    """Softmax of logits in bits; each 2ˣ gets a random error up to the instruction's."""
    e = torch.exp2((bits - bits.amax(1, keepdim=True)).double())
    e = (e * (1 + _EXP2_ERROR * (2 * torch.rand_like(e) - 1))).float()
    e = torch.where(e < _LEAST, 0.0, e)
    return e / e.sum(1, keepdim=True)


class Emulated(TorchFunctionMode):
    """Computes every matrix product by `product`, and the kernel's softmax of logits in bits."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Take the product of two matrices."""
        super().__init__()
        self.product = product

    def _matmul(self, x: Tensor, y: Tensor) -> Tensor:
        # Only W_pᵀ, which produces the logits, is a transposed second operand.
        return self.product(x, y if y.is_contiguous() else y * LOG2E)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Replace matrix products and softmax; call every other function unchanged."""
        if func in (torch.Tensor.matmul, torch.Tensor.__matmul__):
            with torch._C.DisableTorchFunction():
                return self._matmul(*args)
        if func is torch.Tensor.addmm_:
            total, x, y = args
            with torch._C.DisableTorchFunction():
                return total.add_(self.product(x, y))
        if func is torch.softmax:
            with torch._C.DisableTorchFunction():
                return _softmax(args[0])
        if func is F.cross_entropy:
            args = (args[0] * LN2, *args[1:])
        return func(*args, **(kwargs or {}))


def losses(model: TorchGridModel, config: SweepConfig) -> list[float]:
    """Training losses every `EVERY` steps."""
    lr, decay = config.lr.values(config.steps), config.weight_decay.values(config.steps)
    found = []
    for step in range(0, STEPS, EVERY):
        model.steps(lr[step : step + EVERY], decay[step : step + EVERY])
        found.append(model.evaluate().train_loss)
    return found


def _in_float64(config: SweepConfig, job: Job) -> TorchGridModel:
    split = split_pairs(config.p, config.train_frac, job.seed)
    weights = (w.double() for w in initial_weights(config.p, *job, config.init_scale))
    return TorchGridModel(*weights, split.pairs, split.n_train, betas=config.betas, eps=config.eps)


def main() -> None:
    """Train, compare, write."""
    rows = []
    for p, d in SIZES:
        config, job = SweepConfig(p=p, widths=(d,), remainders=()), Job(d, 0)
        exact = losses(_in_float64(config, job), config)
        for name, product in PRODUCTS.items():
            torch.manual_seed(0)
            with Emulated(product) if name != "float32" else nullcontext():
                found = losses(make_model(TorchGridModel, config, job), config)
            worst = max(abs(x - y) / y for x, y in zip(found, exact, strict=True))
            rows.append({"p": p, "d_hidden": d, "products": name, "largest difference": worst})
            print(f"p={p} d={d:<3} {name:<8} {worst:.1e}", flush=True)
    path = write_result("precision", {"steps": STEPS, "rows": rows})
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
