"""Compiles kernels as a launch on a GPU would, on a machine without that GPU.

Needs no GPU and no driver. Launchers run on meta tensors under `kernels.launch.recording`. Each
recorded launch is compiled to a cubin with the types, constants and divisibilities that Triton
would use.
"""

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bilinear.kernels.launch import Launch

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_TYPE_NAME = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.int32: "i32",
    torch.int64: "i64",
}


@dataclass(frozen=True)
class Specialisation:
    """What Triton specialises on: launches equal in all of these fields share a cubin."""

    kernel: str
    types: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[int, ...]
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Compiled:
    """A cubin, its registers and stack (spilled bytes) per thread, and shared memory in bytes."""

    cubin: bytes
    registers: int
    stack: int
    shared: int
    wgmma: bool
    ptx: str


def specialisation(start: Launch) -> Specialisation:
    """The part of a launch that the compiler sees."""
    names = start.kernel.arg_names
    constants = dict(start.constants)
    types = dict.fromkeys(constants, "constexpr")
    divisible = []
    for index, value in enumerate(start.args):
        plain = start.kernel.params[index].do_not_specialize
        types[names[index]] = kind = "i32" if plain else _type_of(value)
        if kind == "constexpr":
            constants[names[index]] = value
        elif not plain and _divides_by_16(value):
            divisible.append(index)
    return Specialisation(
        start.kernel.fn.__name__,
        tuple((name, types[name]) for name in names),
        tuple(sorted(constants.items())),
        tuple(divisible),
        start.tile.num_warps,
        start.tile.num_stages,
    )


def compile_launch(start: Launch, capability: int) -> Compiled:
    """The cubin of a launch for a compute capability (90 for 9.0)."""
    seen = specialisation(start)
    attributes = {(index,): [["tt.divisibility", 16]] for index in seen.divisible}
    source = ASTSource(start.kernel, dict(seen.types), dict(seen.constants), attributes)
    options = {"num_warps": seen.num_warps, "num_stages": seen.num_stages}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, stack = _resources(made.asm["cubin"])
    wgmma = "warp_group_dot" in made.asm["ttgir"]
    return Compiled(
        made.asm["cubin"], registers, stack, made.metadata.shared, wgmma, made.asm["ptx"]
    )


def serialised(ptx: str) -> bool:
    """Whether ptxas makes Hopper's matrix products wait for each other (its remark C7515)."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [str(_TOOLS / "ptxas"), "-v", "-arch=sm_90a", file.name, "-o", os.devnull]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return "C7515" in said


def cuobjdump(cubin: bytes, *options: str) -> str:
    """Output of the disassembler that Triton ships for a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_TOOLS / "cuobjdump"), *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _type_of(value: object) -> str:
    if isinstance(value, Tensor):
        return "*" + _TYPE_NAME[value.dtype]
    if value is None or value == 1:
        return "constexpr"
    return "i32"


def _divides_by_16(value: Any) -> bool:
    """Of a tensor only the offset counts, because allocations are aligned."""
    if isinstance(value, Tensor):
        return value.storage_offset() * value.itemsize % 16 == 0
    return value % 16 == 0


def _resources(cubin: bytes) -> tuple[int, int]:
    text = cuobjdump(cubin, "--dump-resource-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump: expected REG and STACK figures, got {text!r}")
    return int(found[1]), int(found[2])
