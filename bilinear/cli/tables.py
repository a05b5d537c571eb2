"""Prints tables that fit the terminal: a narrow one gets fewer columns, with all their digits."""

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

_GAP = 2


def print_table(
    console: Console,
    rows: Sequence[dict[str, str]],
    *,
    first_to_go: Sequence[str] = (),
    indent: int = 0,
) -> None:
    """Print rows, dictionaries by heading, right-aligned, without columns that do not fit.

    Columns go in the order of `first_to_go`, then from the last.
    """
    names = fitting(rows, console.width - indent, first_to_go)
    table = Table(box=None, padding=(0, _GAP, 0, 0))
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[name] for name in names))
    console.print(Padding(table, (0, 0, 0, indent)), markup=False)


def fitting(
    rows: Sequence[dict[str, str]], width: int, first_to_go: Sequence[str] = ()
) -> list[str]:
    """Return the headings of the columns that fit in `width` characters, at least one."""
    names = list(rows[0]) if rows else []
    sizes = {
        name: max(cell_len(text) for text in (name, *(r[name] for r in rows))) for name in names
    }
    order = [*first_to_go, *reversed([name for name in names if name not in first_to_go])]
    for name in order[: len(names) - 1]:
        if sum(sizes[kept] + _GAP for kept in names) <= width:
            break
        if name in names:
            names.remove(name)
    return names
