"""Compares the identity's kernels with the same kernels without gates: one line of JSON.

The gate's three device functions are taken out of a kernel's source as text, and what is left is
compiled for the same launch: [kernel, instructions with gates, instructions equal]. In a process of
its own: Triton must not interpret the kernels here.
"""

import importlib.util
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.compile_report import launches
from bench.measure.ahead_of_time import compile_launch, cuobjdump

KERNELS = (
    "dual_forward",
    "dual_backward",
    "dual_backward_input",
    "dual_backward_weight",
    "mlp_forward",
    "mlp_backward",
    "mlp_backward_input",
    "mlp_backward_weight",
    "mlp_backward_projection",
    "pointwise",
)
WITHOUT = (
    (r"from \.gates_device import .*\n", ""),
    (r"from \.(\w+) import", r"from bilinear.kernels.\1 import"),
    (r"gated\((\w+), GATE\)", r"\1"),
    (r"left_gradient\((\w+), \w+, (\w+), GATE\)", r"(\1 * \2)"),
    (r"right_gradient\((\w+), (\w+), GATE\)", r"(\1 * \2)"),
)


def main() -> None:
    """For the capability given: forward and backward, each kernel with its tile of the table."""
    capability = int(sys.argv[1])
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in KERNELS:
            for start in launches(name, "half", capability):
                bare = start._replace(kernel=_without_gates(start.kernel, Path(folder)))
                with_gates, without = (_instructions(one, capability) for one in (start, bare))
                found.append((name, len(with_gates), with_gates == without))
    print(json.dumps(found))


def _without_gates(kernel: Any, folder: Path) -> Any:
    source = Path(kernel.fn.__code__.co_filename)
    text = source.read_text()
    for pattern, replacement in WITHOUT:
        text, count = re.subn(pattern, replacement, text)
        assert count or "gradient" in pattern, f"{source}: found nothing like {pattern}"
    file = folder / f"bare_{source.name}"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return getattr(module, kernel.fn.__name__)


def _instructions(start: Any, capability: int) -> list[str]:
    """Every instruction and its operands, in order; addresses and encodings left out."""
    text = cuobjdump(compile_launch(start, capability).cubin, "-sass")
    return re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(.*?;)", text, re.MULTILINE)


if __name__ == "__main__":
    main()
