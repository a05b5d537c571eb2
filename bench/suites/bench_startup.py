"""How long do the import and the first result take? Each in a new process, ours and torch alone.

`import bilinear` loads torch only at first use, so compare the times of the first result.
"""

import subprocess
import sys
from functools import partial
from typing import Any

import pytest

from bench.measure.environment import RESULTS
from bench.measure.turns import Contestants, enter

ROOT = RESULTS.parent.parent
_STEP = "x = torch.randn(4096, 128); w = torch.randn(128, 128, requires_grad=True); "
_EAGER = "lambda x, w: torch.mul(*torch.nn.functional.linear(x, w).chunk(2, -1))"
PROGRAMS = {
    "import": {"bilinear": "import bilinear", "torch": "import torch"},
    "first result": {
        "fused": f"import torch, bilinear; {_STEP} m = bilinear.Bilinear(128, 64); "
        "m(x).sum().backward()",
        "eager": f"import torch; {_STEP} f = {_EAGER}; f(x, w).sum().backward()",
    },
}
CASES = [(question, way) for question, programs in PROGRAMS.items() for way in programs]


def _process(program: str) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, cwd=ROOT)


def processes(question: str) -> Contestants:
    return {way: partial(_process, program) for way, program in PROGRAMS[question].items()}


@pytest.mark.parametrize(("question", "way"), CASES)
def test_startup(benchmark: Any, question: str, way: str) -> None:
    benchmark.group = f"start-up: {question}"
    enter(benchmark, way, processes, question, seconds=1.0, least_rounds=3)
