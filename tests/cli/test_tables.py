"""Tables: columns that do not fit are left out, and digits never are."""

import io

import pytest
from rich.console import Console

from bilinear.cli.tables import fitting, print_table

ROWS = [
    {"width": "64", "perfect": "3/3", "steps": "1,234", "interval": "0.44 – 1.00"},
    {"width": "5", "perfect": "0/3", "steps": "—", "interval": "0.00 – 0.56"},
]


@pytest.mark.parametrize("width", [8, 12, 20, 30, 40, 80, 120])
def test_columns_go_and_digits_stay(width: int) -> None:
    out = io.StringIO()
    print_table(Console(file=out, width=width), ROWS, first_to_go=("interval", "steps"))
    shown = fitting(ROWS, width, ("interval", "steps"))
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert all(len(line.rstrip()) <= max(width, 7) for line in lines)
    assert "…" not in out.getvalue()
    for row, line in zip(ROWS, lines[1:], strict=True):
        assert line.split()[0] == row["width"]
        assert all(row[name] in line for name in shown)


def test_order_in_which_columns_go() -> None:
    gone = ("interval", "steps")
    assert fitting(ROWS, 80, gone) == ["width", "perfect", "steps", "interval"]
    assert fitting(ROWS, 30, gone) == ["width", "perfect", "steps"]
    assert fitting(ROWS, 18, gone) == ["width", "perfect"]
    assert fitting(ROWS, 3, gone) == ["width"]
    assert fitting([], 80) == []
