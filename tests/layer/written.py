"""Modules from source text, which `fuse` can read as it reads a file's."""

import itertools
import linecache
from typing import Any

from torch import nn

_COUNT = itertools.count()
_HEADER = """
import operator
import torch
import torch.nn.functional as F
from torch import manual_seed, nn
from torch.nn.functional import silu
GAIN = 1.0
def relu(x): return x
"""


def written(source: str, name: str = "Written") -> Any:
    """The object of that name which `source` defines; the header's names are there."""
    source = f"{_HEADER}{source}\n"
    file = f"<written {next(_COUNT)}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    world: dict[str, Any] = {"__name__": __name__}
    exec(compile(source, file, "exec"), world)
    return world[name]


def gated(body: str, *, more: str = "", packed: bool = False, bias: bool = False) -> nn.Module:
    """A float64 module whose forward(x) has these lines.

    Its linears are l, r (5 → 6) or, `packed`, w (5 → 12), and down (6 → 4). `more` are lines of
    `__init__`.
    """
    linears = f"self.w = nn.Linear(5, 12, bias={bias})" if packed else (
        f"self.l, self.r = nn.Linear(5, 6, bias={bias}), nn.Linear(5, 6, bias={bias})"
    )  # fmt: skip
    lines = ["super().__init__()", linears, "self.down = nn.Linear(6, 4)", *more.splitlines()]
    source = ["class Written(nn.Module):", "    def __init__(self):"]
    source += [f"        {line}" for line in lines]
    source += ["    def forward(self, x):", *(f"        {line}" for line in body.splitlines())]
    module: nn.Module = written("\n".join(source))().double()
    return module
