# SPDX-License-Identifier: Apache-2.0
"""A table once, as CSV for machines and as Markdown or HTML for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from research.reports.comparing import Spread

__all__ = ["Cell", "Column", "Table"]

Cell = str | float | int | Spread | None


@dataclass(frozen=True)
class Column:
    """A heading, and how numbers below it are written."""

    title: str
    form: str = ""
    spread: bool = False
    """Whether it holds spreads: two columns of a CSV file."""

    def text(self, value: Cell) -> str:
        """A cell for people."""
        if value is None:
            return "–"
        if isinstance(value, Spread):
            mean = format(value.mean, self.form)
            return mean if value.deviation is None else f"{mean} ± {format(value.deviation, self.form)}"
        return value if isinstance(value, str) else format(value, self.form)


@dataclass
class Table:
    """A table with its title and what a reader must know.

    Attributes:
        name: Of its files.
    """

    name: str
    title: str
    note: str
    columns: Sequence[Column]
    rows: list[list[Cell]] = field(default_factory=list)

    def texts(self) -> list[list[str]]:
        """All cells for people."""
        return [[column.text(cell) for column, cell in zip(self.columns, row, strict=True)] for row in self.rows]

    def markdown(self) -> str:
        """With title and note."""
        lines = [f"### {self.title}", "", self.note, "", _line([column.title for column in self.columns])]
        lines.append(_line(["---"] + ["---:"] * (len(self.columns) - 1)))
        return "\n".join([*lines, *map(_line, self.texts())]) + "\n"

    def csv(self) -> str:
        """Numbers as they are."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        titles = [
            [column.title, f"{column.title} deviation"] if column.spread else [column.title] for column in self.columns
        ]
        writer.writerow([title for pair in titles for title in pair])
        for row in self.rows:
            cells = [_raw(cell, column) for column, cell in zip(self.columns, row, strict=True)]
            writer.writerow([value for pair in cells for value in pair])
        return out.getvalue()


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _raw(cell: Cell, column: Column) -> list[str | float | int | None]:
    if not column.spread:
        assert not isinstance(cell, Spread)
        return [cell]
    return [cell.mean, cell.deviation] if isinstance(cell, Spread) else [None, None]
