"""Which frequencies a model of (a + b) mod p computes with.

The products of a and b add 2 Q_ab[a, b] to logit c. Its *interaction* is that less its means over
c, over a and over b: a softmax does not depend on the mean over c, and the other two are terms in a
alone or b alone. A circuit of frequency k contributes Re(A_k e^{iθk(a+b−c)}), θ = 2π/p: one
coefficient of the interaction's DFT over (a, b, c), at (k, k, −k), and its conjugate. A_k is the
circuit's amplitude in logits; its angle is the phase, 0 if the circuit peaks at c = a + b. No other
coefficient contributes to the task.

Arrays over frequencies have p // 2 + 1 entries, index k being frequency k; entry 0 is always 0, for
the interaction has no constant part.

A hidden unit adds p_h[c] (l_a[a] r_b[b] + r_a[a] l_b[b]), so every coefficient comes from one FFT
of each row of the weights, and the amplitude of a model is the sum of its units' amplitudes.
(Fourier views of modular addition: Nanda et al. 2023, arXiv 2301.05217.)
"""

from typing import NamedTuple

import torch
from torch import Tensor

from bilinear.reading.interactions import table_accuracy
from bilinear.reading.weights import Readable, modulus, weights_of


def frequencies(model: Readable, threshold: float = 0.01) -> Tensor:
    """Frequencies k that one model computes with, strongest first, int64 (n_used,).

    Args:
        model: a model, a state dict, or (w_l (d, 2p), w_r (d, 2p), w_p (p, d)).
        threshold: least share of the interaction's power, as in `used_frequencies`.

    Examples:
        >>> from bilinear.reading import exact_circuit, fourier
        >>> fourier.frequencies(exact_circuit.exact_circuit(23, frequency=4))
        tensor([4])
    """
    shares = frequency_shares(model)
    if shares.ndim != 1:
        raise ValueError(f"model: expected one model, got {tuple(shares.shape[:-1])} of them")
    return shares.argsort(descending=True)[: int(used_frequencies(shares, threshold).sum())]


def unit_amplitudes(model: Readable) -> Tensor:
    """Amplitude that each hidden unit adds at each frequency, complex128, (…, d, p // 2 + 1).

    `model` is a model, a state dict, or (w_l (…, d, 2p), w_r (…, d, 2p), w_p (…, p, d)). The
    angle of an amplitude is its phase: the unit's part of the circuit peaks at
    a + b − c = −phase · p / (2πk).
    """
    weights = weights_of(model, pairs=True)
    p = modulus(weights)
    (l_a, l_b), (r_a, r_b) = (_halves(w) for w in weights[:2])
    out = torch.fft.rfft(weights.w_p.double().mT).conj() / p
    return (l_a * r_b + r_a * l_b) * out * _sides(p, out.device)


def _sides(p: int, device: torch.device) -> Tensor:
    """How many DFT coefficients each circuit has: 2 (k and −k), 1 at k = p / 2, 0 at k = 0."""
    sides = torch.full((p // 2 + 1,), 2.0, dtype=torch.float64, device=device)
    sides[0] = 0.0
    if p % 2 == 0:
        sides[-1] = 1.0
    return sides


def amplitudes(model: Readable) -> Tensor:
    """A_k of the model, complex128, (…, p // 2 + 1): the sum of its units' amplitudes."""
    return unit_amplitudes(model).sum(dim=-2)


def frequency_shares(model: Readable) -> Tensor:
    """Share of the interaction's power in each frequency's circuit, (…, p // 2 + 1), sum ≤ 1.

    A model with a single circuit has share 1, a random one about 4 / p³. 0 if there is no
    interaction.
    """
    weights = weights_of(model, pairs=True)
    amplitude = amplitudes(weights)
    power = amplitude.abs().square() / 2
    if modulus(weights) % 2 == 0:
        power[..., -1] *= 2
    total = interaction_power(weights).unsqueeze(-1)
    return power / torch.where(total == 0, 1, total)


def interaction_power(model: Readable) -> Tensor:
    """Mean square of the interaction over all (a, b, c), in logits², float64, (…)."""
    weights = weights_of(model, pairs=True)
    w_l, w_r, w_p = weights.double()
    l_a, l_b, r_a, r_b = (
        half - half.mean(dim=-1, keepdim=True) for w in (w_l, w_r) for half in w.chunk(2, dim=-1)
    )
    out = w_p - w_p.mean(dim=-2, keepdim=True)
    products = (l_a @ l_a.mT) * (r_b @ r_b.mT) + (r_a @ r_a.mT) * (l_b @ l_b.mT)
    crossed = (l_a @ r_a.mT) * (r_b @ l_b.mT)
    gram = (out.mT @ out) * (products + crossed + crossed.mT)
    return gram.sum(dim=(-2, -1)).clamp(min=0) / modulus(weights) ** 3


def used_frequencies(shares: Tensor, threshold: float = 0.01) -> Tensor:
    """Whether a frequency holds at least `threshold` of the interaction's power, bool, as shares.

    The default separates circuits from noise for p ≥ 23; at smaller p the shares of a random model
    (4 / p³) come near it.
    """
    return shares >= threshold


class ServingUnits(NamedTuple):
    """For each hidden unit (…, d): the frequency at which its |amplitude| is largest.

    `amplitude` is that |amplitude|, `share` its part of the unit's Σ_k |amplitude| (1 for a unit
    that serves one frequency alone), `phase` its angle in radians. Frequency and share are 0 for a
    unit without interaction.
    """

    frequency: Tensor
    share: Tensor
    phase: Tensor
    amplitude: Tensor

    @property
    def relative_amplitude(self) -> Tensor:
        """Amplitudes over the model's largest, 0 … 1."""
        return self.amplitude / self.amplitude.amax(dim=-1, keepdim=True).clamp(min=1e-30)


def serving_units(model: Readable) -> ServingUnits:
    """Which frequency each hidden unit serves most."""
    amplitude = unit_amplitudes(model)
    magnitude = amplitude.abs()
    total = magnitude.sum(dim=-1)
    best, frequency = magnitude.max(dim=-1)
    phase = amplitude.gather(-1, frequency.unsqueeze(-1)).squeeze(-1).angle()
    share = torch.where(total > 0, best / total, torch.zeros_like(total))
    return ServingUnits(frequency, share, phase, best)


def units_per_frequency(model: Readable) -> Tensor:
    """How many hidden units serve each frequency most, int64, (…, p // 2 + 1).

    Entry 0 counts units that serve none. A circuit needs at least two units
    (`reading.exact_circuit`), so half of an entry bounds how many separate circuits of that
    frequency there are.
    """
    weights = weights_of(model, pairs=True)
    served = serving_units(weights).frequency
    return torch.nn.functional.one_hot(served, modulus(weights) // 2 + 1).sum(dim=-2)


def cross_spectrum(cross: Tensor) -> Tensor:
    """|2-D DFT| / p² of cross blocks or logit tables (…, p, p), zero frequency in the middle.

    Entry [i, j] is at frequencies (i − p // 2, j − p // 2) in a and b; a circuit of frequency k has
    half its amplitude at (k, k) and half at (−k, −k).
    """
    p = cross.shape[-1]
    spectrum = torch.fft.fft2(cross.double()).abs() / p**2
    return torch.fft.fftshift(spectrum, dim=(-2, -1))


def circuit_table(amplitude: Tensor, frequency: int, p: int) -> Tensor:
    """Re(A e^{iθk(a+b−c)}) on all (c, a, b), float64: amplitude (…) → (…, p, p, p)."""
    n = torch.arange(p, device=amplitude.device)
    index = (frequency * (n[:, None] + n - n[:, None, None])) % p
    angle = 2 * torch.pi * index.double() / p
    real, imag = (part[..., None, None, None] for part in (amplitude.real, amplitude.imag))
    return real * angle.cos() - imag * angle.sin()


class Ablation(NamedTuple):
    """Accuracy on all p² pairs of the whole model, and without frequency k, (p // 2 + 1,)."""

    accuracy: float
    without: Tensor

    @property
    def cost(self) -> Tensor:
        """Accuracy lost with each frequency, (p // 2 + 1,)."""
        return self.accuracy - self.without


def ablate_frequencies(tables: Tensor) -> Ablation:
    """Subtract each frequency's circuit from one model's logits in turn.

    `tables` (p, p, p) from `logit_table`, dimensions c, a, b.
    """
    p = tables.shape[-1]
    tables = tables.double()
    amplitude = table_amplitudes(tables)
    whole = table_accuracy(tables)
    without = [
        table_accuracy(tables - circuit_table(amplitude[k], k, p)) for k in range(1, p // 2 + 1)
    ]
    return Ablation(whole.item(), torch.stack([whole, *without]))


def keep_frequencies(tables: Tensor, kept: Tensor) -> Tensor:
    """Logits (p, p, p) of the circuits of the frequencies in `kept`, and nothing else."""
    p, amplitude = tables.shape[-1], table_amplitudes(tables)
    parts = [circuit_table(amplitude[k], k, p) for k in kept.tolist()]
    return torch.stack(parts).sum(dim=0) if parts else torch.zeros_like(tables, dtype=torch.float64)


def table_amplitudes(tables: Tensor) -> Tensor:
    """A_k by a 3-D DFT of the logits (…, p, p, p) of any model, bilinear or not."""
    p = tables.shape[-1]
    spectrum = torch.fft.fftn(tables.double(), dim=(-3, -2, -1)) / p**3
    k = torch.arange(p // 2 + 1, device=tables.device)
    return _sides(p, tables.device) * spectrum[..., -k, k, k]


def _halves(w: Tensor) -> tuple[Tensor, Tensor]:
    """Fourier coefficients of the a and b halves of each row."""
    a, b = w.double().chunk(2, dim=-1)
    p = a.shape[-1]
    return torch.fft.rfft(a) / p, torch.fft.rfft(b) / p
