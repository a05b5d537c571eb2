"""The closed-form circuit: modular addition by two hidden units, exact for every modulus.

Let θ = 2πk/p for a frequency k coprime to p, and z = e^{iθa} + e^{i(θb+φ)}. Then

    z² = e^{i2θa} + e^{i(2θb+2φ)} + 2 e^{i(θ(a+b)+φ)} = 2 e^{i(θ(a+b)+φ)} (1 + cos(θ(a−b) − φ)).

The angle of z² is that of the sum, its length depends on the difference alone. With C = Re z and
S = Im z, both sums of a term in a and a term in b, as a bilinear layer's two sides are of one-hot
pairs,

    h₁ = Re z² = (C − S)(C + S)        h₂ = Im z² = C · 2S,

and the projection turns h back by each class's own angle,

    logit_c = cos(θc + φ) h₁ + sin(θc + φ) h₂ = 2 (1 + cos(θ(a−b) − φ)) cos(θ(a+b−c)),

which is largest at c = a + b, alone, wherever the length is not zero: θ(a−b) − φ = π (mod 2π) must
have no solution in integers. For odd p, φ = 0 has none; for even p, φ = π/p does, while φ = 0 would
lose the p pairs with a − b = p/2 (mod p).
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
    p⁻⁴ (see `smallest_margin`), so float32 must be true float32. Raises ConfigError for a frequency
    that shares a factor with p.
    """
    if type(p) is not int or p < 2:
        raise ConfigError(f"p: expected an integer ≥ 2, got {shown(p)}")
    if type(frequency) is not int or math.gcd(frequency, p) != 1:
        raise ConfigError(
            f"frequency: expected an integer coprime to p={p}, got {shown(frequency)}"
        )
    theta = 2 * math.pi * frequency / p
    phase = _phase(p)
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

    δ is how close the difference's angle comes to the one of length zero: π/p both for odd p (where
    π lies halfway between two differences) and for even p (where φ puts it there).
    """
    return 2 * (1 - math.cos(math.pi / p)) * (1 - math.cos(2 * math.pi / p))


def _phase(p: int) -> float:
    return math.pi / p if p % 2 == 0 else 0.0
