"""The parts of a float32, by running in numpy the PTX instructions that the GPU runs.

bench/studies/precision.py emulates products by parts; Triton's interpreter supports neither.
"""

import re

import numpy as np
import pytest

from bilinear.kernels import split_products

Registers = dict[str, np.ndarray]


def bfloat16(x: np.ndarray) -> np.ndarray:
    """Bits of x rounded to nearest even."""
    bits = x.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint32)


def widened(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def run(assembly: str, registers: Registers) -> Registers:
    """Interprets the few PTX instructions that the kernels use."""
    for text in assembly.strip("{} \n").split(";"):
        words = re.findall(r"[\w.$]+", text)
        if not words or words[0] == ".reg":
            continue
        operation, into, *given = words
        values = [
            registers[name] if name in registers else np.uint32(int(name, 0)) for name in given
        ]
        if operation == "cvt.rn.bf16x2.f32":  # the first operand is the upper half
            registers[into] = bfloat16(values[0]) << 16 | bfloat16(values[1])
        elif operation == "shl.b32":
            registers[into] = (values[0] << values[1]).view(np.float32)
        elif operation == "and.b32":
            registers[into] = (values[0] & values[1]).view(np.float32)
        elif operation == "sub.f32":
            registers[into] = values[0] - values[1]
        else:
            raise ValueError(f"{operation}: not known here")
    return registers


@pytest.mark.parametrize(("name", "parts", "bits"), [("_TWO", 2, 16), ("_THREE", 3, 24)])
def test_parts_add_up_to_the_number(name: str, parts: int, bits: int) -> None:
    x = np.random.default_rng().standard_normal((2, 10_000)).astype(np.float32)
    x *= np.exp2(np.random.default_rng().integers(-40, 40, x.shape)).astype(np.float32)
    given = {f"${parts}": x[0], f"${parts + 1}": x[1]}
    found = run(getattr(split_products, name).value, given)
    packed = [found[f"${i}"] for i in range(parts)]
    # The first of two elements is the lower half, as in a vector of bfloat16.
    for element, halves in (
        (x[0], [p & 0xFFFF for p in packed]),
        (x[1], [p >> 16 for p in packed]),
    ):
        total = sum(widened(half).astype(np.float64) for half in halves)
        assert np.all(np.abs(total - element) <= 2.0**-bits * np.abs(element))
        if parts == 3:
            assert np.array_equal(total, element.astype(np.float64))
        assert np.all(np.abs(widened(halves[1])) <= 2.0**-8 * np.abs(element))
