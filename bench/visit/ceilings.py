"""The best rates that this device reaches: bytes a second of a copy, FLOP/s of matmuls."""

from typing import Any

from bench.measure.roofs import measure
from bench.visit.items import Item, Visit


def items(visit: Visit) -> list[Item]:
    """Return one item, which measures both roofs."""
    return [Item("roofs", _roofs, least=15, most=60)]


def _roofs(visit: Visit) -> dict[str, Any]:
    found = measure(visit.device, tiny=visit.quick)
    best = {kind: f"{roof.best / 1e12:.0f} TFLOP/s" for kind, roof in found.matmul.items()}
    return {"roofs": found.to_dict(), "told": f"copy {found.copy.best / 1e12:.2f} TB/s, {best}"}
