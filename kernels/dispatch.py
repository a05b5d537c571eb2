"""Which path and which tile a call takes, read from one committed table; never from a search."""

from dataclasses import dataclass

import torch

from .tiles import Tile


@dataclass(frozen=True)
class Plan:
    """What would run: `path` is "mlp", "dual" or "pointwise"; `reason` says why, in words."""

    path: str
    config: Tile | None
    reason: str


def choose(
    op: str,
    m: int,
    d_in: int,
    d: int,
    d_out: int | None,
    dtype: torch.dtype,
    device_capability: tuple[int, int],
    precision: str,
) -> Plan:
    """Plan of one op: "bilinear_forward", "bilinear_backward", "mlp_forward" or "mlp_backward".

    Paths of a forward: "mlp" is `mlp.mlp_forward`; "dual" is `dual.dual_forward`, then a library
    matmul with w_p for an mlp; "pointwise" is a library matmul with the packed weight, then
    `pointwise.product_forward`, then w_p likewise.
    Paths of a backward: "mlp" is `mlp.mlp_backward`; "dual" recomputes with `dual.dual_backward`,
    or with saved lr uses `dual.dual_backward_input` and `dual_backward_weight`; "pointwise" is
    `pointwise.product_backward` on a saved or recomputed lr, then library matmuls.
    d_out is None for the bilinear ops.
    """
    raise NotImplementedError
