"""A closed-form circuit of two hidden units that is right on all pairs, for every modulus.

Let θ = 2πk/p for a frequency k coprime to p, and z = e^{iθa} + e^{i(θb+φ)}. Then

    z² = e^{i2θa} + e^{i(2θb+2φ)} + 2 e^{i(θ(a+b)+φ)} = 2 e^{i(θ(a+b)+φ)} (1 + cos(θ(a−b) − φ)).

The angle of z² depends on a + b alone, its length on a − b alone. C = Re z and S = Im z are sums of
a term in a and a term in b, so each side of a bilinear layer can compute them from one-hot pairs:

    h₁ = Re z² = (C − S)(C + S)        h₂ = Im z² = C · 2S,

The projection turns h back by each class's own angle,

    logit_c = cos(θc + φ) h₁ + sin(θc + φ) h₂ = 2 (1 + cos(θ(a−b) − φ)) cos(θ(a+b−c)),

which is largest at c = a + b alone wherever the length is not zero, that is, if no integers a, b
solve θ(a−b) − φ = π (mod 2π). For odd p, φ = 0 achieves that. For even p, φ = π/p does; with φ = 0
the length would be zero at the p pairs with a − b = p/2 (mod p).
"""

import math

import torch
from torch import Tensor

from bilinear.errors import ConfigError, shown


def exact_circuit(
    p: int, frequency: int = 1, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Build the two-unit circuit: w_l (2, 2p), w_r (2, 2p) and w_p (p, 2), on the CPU.

    Right on all p² pairs for every p ≥ 2 and frequency coprime to p. The smallest margin shrinks as
    p⁻⁴ (see `smallest_margin`), too small for tf32 or bfloat16 products. Raises ConfigError for a
    frequency that shares a factor with p.
    """
    if type(p) is not int or p < 2:
        raise ConfigError(f"p: expected an integer ≥ 2, got {shown(p)}")
    if type(frequency) is not int or math.gcd(frequency, p) != 1:
        raise ConfigError(
            f"frequency: expected an integer coprime to p={p}, got {shown(frequency)}"
        )
    theta = 2 * math.pi * frequency / p
    phase = math.pi / p if p % 2 == 0 else 0.0
    angle = theta * torch.arange(p, dtype=torch.float64)
    cos = torch.cat([torch.cos(angle), torch.cos(angle + phase)])
    sin = torch.cat([torch.sin(angle), torch.sin(angle + phase)])
    circuit = {
        "w_l": torch.stack([cos - sin, cos]),
        "w_r": torch.stack([cos + sin, 2 * sin]),
        "w_p": torch.stack([torch.cos(angle + phase), torch.sin(angle + phase)], dim=1),
    }
    return {name: w.to(dtype) for name, w in circuit.items()}


def exact_state_dict(
    p: int, frequency: int = 1, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Give the same weights under the names that `bilinear.reference.Model` loads."""
    circuit = exact_circuit(p, frequency, dtype)
    return {
        "bi_linear.weight": torch.cat([circuit["w_l"], circuit["w_r"]]),
        "projection.weight": circuit["w_p"],
    }


def smallest_margin(p: int) -> float:
    """Least logit margin over all pairs in exact arithmetic, 2(1 − cos δ)(1 − cos 2π/p) ~ p⁻⁴.

    δ = π/p is the least distance of θ(a−b) − φ from π, where the length is zero: for odd p, π lies
    halfway between two multiples of 2π/p; for even p, φ = π/p shifts it there.
    """
    return 2 * (1 - math.cos(math.pi / p)) * (1 - math.cos(2 * math.pi / p))
