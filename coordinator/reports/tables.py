# SPDX-License-Identifier: Apache-2.0
"""Tables that fit their terminal: columns that do not go, the least important first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.table import Table

from fedcore.system.logs import printable

__all__ = ["Column", "fitted", "plain_table"]

_GAP = 2


@dataclass(frozen=True)
class Column:
    """A column and its cells."""

    title: str
    cells: Sequence[str]
    keep: int
    """The columns with the least go first."""
    right: bool = False

    @property
    def width(self) -> int:
        """In cells of the terminal, with the gap to the next one."""
        return max(map(cell_len, (self.title, *self.cells)), default=0) + _GAP


def fitted(columns: Sequence[Column], width: int, *, styles: Sequence[str], rest: Column | None = None) -> Table:
    """A table no wider than the terminal.

    Args:
        columns: From left to right; one in which all cells are empty is left out.
        width: Of the terminal.
        styles: One a row.
        rest: A last column for words of any length: it has at least a third of the terminal, if it needs that, and is
            cut to what is left.
    """
    kept = [column for column in columns if any(column.cells)]
    rest = rest if rest is not None and any(rest.cells) else None
    room = width - (0 if rest is None else min(rest.width, max(20, width // 3)))
    while len(kept) > 2 and sum(column.width for column in kept) - _GAP > room:
        kept.remove(min(kept, key=lambda column: column.keep))
    table = plain_table()
    for column in kept:
        table.add_column(column.title, justify="right" if column.right else "left", no_wrap=True, overflow="ellipsis")
    left = width - sum(column.width for column in kept)
    if rest is not None:
        table.add_column(rest.title, no_wrap=True)
    for index, style in enumerate(styles):
        cells = [printable(column.cells[index]) for column in kept]
        table.add_row(*cells, *([] if rest is None else [_cut(printable(rest.cells[index]), left)]), style=style)
    return table


def plain_table() -> Table:
    """A table without lines."""
    return Table(box=None, padding=(0, _GAP, 0, 0), header_style="dim", pad_edge=False)


def _cut(text: str, width: int) -> str:
    return text if cell_len(text) <= width else f"{set_cell_size(text, max(0, width - 3)).rstrip()}..."
