# SPDX-License-Identifier: Apache-2.0
"""Tables: rows of a CSV file, whose delimiter is found out and whose quotation marks are held to the rules, or of
GLUE's TSV, where a mark is an ordinary character.

A mark that is never closed swallows rows; a mark in the wrong place cuts a text. Both are refused with the line where
the trouble begins, never guessed at."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from fedcore.errors import DataError

__all__ = ["DELIMITERS", "delimiter_of", "table_rows"]

DELIMITERS: Final = ",;\t|"
_SEPARATOR: Final = re.compile(r"sep=([,;\t|])(?:\r\n|\r|\n)?", re.IGNORECASE)
_NAMES: Final = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True)
class _Record:
    """A row as the file has it.

    Attributes:
        line: Where it begins, from 1.
        lines: As they are in the file, where there are several; else none.
        fields: Or why it cannot be taken apart.
    """

    line: int
    lines: tuple[str, ...]
    fields: Sequence[str] | str


def delimiter_of(header: str, wanted: Collection[str]) -> str:
    """Under which delimiter a header has most of the wanted columns, and then most columns.

    Example:
        >>> delimiter_of("text;label", ["text"]), delimiter_of("text", ["text"]), delimiter_of("text|a,label", ["text"])
        (';', ',', '|')
    """

    def worth(delimiter: str) -> tuple[int, int]:
        names = next(csv.reader([header], delimiter=delimiter), [])
        return len({*wanted} & {*names}), len(names)

    return max(DELIMITERS, key=worth)


def table_rows(
    lines: Iterable[str], source: str, *, quoted: bool, sure: bool, wanted: Collection[str], label: str | None
) -> Iterator[tuple[str, Mapping[str, str] | DataError]]:
    """Each row of a table with its place, or what is wrong with it.

    Args:
        lines: The file's, with their ends.
        source: The file, for places.
        quoted: As CSV is; else tabs, and no mark means anything.
        sure: Somebody said so, and the marks in it are not looked at.
        wanted: Columns by which a delimiter is known.
        label: The column whose values tell rows from a text that spans lines.

    Raises:
        DataError: The header cannot be used.
    """
    records = _Records(lines, quoted, wanted)
    every = list(records)
    if not every:
        raise DataError("the file is empty", place=source, remedy="the first line names the columns")
    header = _header(every[0], source, quoted, wanted)
    rows = every[1:]
    column = header.index(label) if label in header else None
    labels = {
        record.fields[column]
        for record in rows
        if column is not None
        and not record.lines
        and not isinstance(record.fields, str)
        and column < len(record.fields)
    }
    only_quotes = not quoted and not sure and _is_quoted_after_all(rows)
    for record in rows:
        place = f"{source}:{record.line}"
        wrong = _wrong(record, header, records.delimiter, quoted)
        if not wrong and column is not None and _swallows(record, len(header), column, labels, records.delimiter):
            wrong = (
                "a quotation mark is opened here, and the rows of the next lines are inside it",
                ("close it in its line; a text that is meant to hold such lines: write the file as JSON lines"),
            )
        if not wrong and only_quotes and any(_doubled(field) for field in record.fields):
            wrong = (
                "a text in quotation marks, as CSV has them",
                ('set data.format to "csv" if the marks are not part of the text, or to "tsv" if they are'),
            )
        if wrong:
            yield place, DataError(wrong[0], place=place, remedy=wrong[1])
        else:
            yield place, dict(zip(header, record.fields, strict=True))


class _Records:
    """Iterates over records; knows the delimiter once it has begun."""

    def __init__(self, lines: Iterable[str], quoted: bool, wanted: Collection[str]) -> None:
        self._lines, self._quoted, self._wanted = iter(lines), quoted, wanted
        self._read: list[str] = []
        self.delimiter = "\t"

    def __iter__(self) -> Iterator[_Record]:
        skipped = 0
        for first in self._lines:
            if first.strip("\r\n"):
                break
            skipped += 1
        else:
            return
        if self._quoted:
            said = _SEPARATOR.fullmatch(first)
            if said:
                # A spreadsheet's own first line, which it takes for no row either.
                skipped, first = skipped + 1, next(self._lines, "")
            self.delimiter = said[1] if said else delimiter_of(first, self._wanted)
            if not first:
                return
        # A text may be as long as it likes; the limit is the csv module's, and is put back.
        before = csv.field_size_limit(sys.maxsize)
        try:
            yield from self._records(first, skipped)
        finally:
            csv.field_size_limit(before)

    def _records(self, first: str, skipped: int) -> Iterator[_Record]:
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if self._quoted else csv.QUOTE_NONE
        reader = csv.reader(self._kept(first), delimiter=self.delimiter, quoting=quoting, strict=True)
        while True:
            line = skipped + reader.line_num + 1
            self._read.clear()
            try:
                fields: Sequence[str] | str = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                fields = str(error)
            if fields:
                yield _Record(line, tuple(self._read) if len(self._read) > 1 else (), fields)

    def _kept(self, first: str) -> Iterator[str]:
        """Lines, each kept until its record is whole."""
        self._read.append(first)
        yield first
        for line in self._lines:
            self._read.append(line)
            yield line


def _header(record: _Record, source: str, quoted: bool, wanted: Collection[str]) -> Sequence[str]:
    place = f"{source}:{record.line}"
    if isinstance(record.fields, str):
        raise DataError(_marks(record), place=place, remedy="the first line names the columns")
    names = record.fields
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise DataError(f"two columns are named {twice[0]!r}", place=place, remedy="rename one")
    if not quoted and len(names) == 1 and names[0].strip('"') and not {*wanted} & {*names}:
        under = delimiter_of(names[0], wanted)
        if under != "\t" and {*wanted} & {*next(csv.reader([names[0]], delimiter=under))}:
            raise DataError(
                f"columns are separated by {_NAMES[under]}, not tabs", place=place, remedy='set data.format to "csv"'
            )
    if not quoted and any(name and name[0] == name[-1] == '"' and len(name) > 1 for name in names):
        raise DataError("the columns' names are in quotation marks", place=place, remedy='set data.format to "csv"')
    return names


def _wrong(record: _Record, header: Sequence[str], delimiter: str, quoted: bool) -> tuple[str, str] | None:
    """What is wrong with a record by itself, and the remedy."""
    fields = record.fields
    if isinstance(fields, str):
        return _marks(record), 'a mark inside a text in quotation marks is written twice: ""'
    if len(fields) != len(header):
        many, marks = len(fields) > len(header), any(field.startswith('"') for field in fields)
        remedy = "repair the line"
        if many and not any(fields[len(header) :]):
            remedy = "the line ends in a delimiter: leave it out, or let the first line end in one too"
        elif quoted and many:
            remedy = f"columns are separated by {_NAMES[delimiter]}: put a text that has some in quotation marks"
        elif not quoted and marks:
            remedy = 'repair the line; if texts are in quotation marks, set data.format to "csv"'
        return f"{len(fields)} columns where the header has {len(header)}", remedy
    if quoted and any(field[:1] in (" ", "\t") and field.lstrip().startswith('"') for field in fields):
        return "a blank before a quotation mark, which makes the mark part of the text", "leave the blank out"
    return None


def _marks(record: _Record) -> str:
    """What is wrong with a record's quotation marks."""
    last = record.line + max(0, len(record.lines) - 1)
    if record.fields == "unexpected end of data":
        return f"a quotation mark is opened and never closed, to the end of the file in line {last}"
    if record.lines:
        return f"a quotation mark is opened, and the next one, in line {last}, is inside a text"
    return "a quotation mark inside a text that is in quotation marks"


def _swallows(record: _Record, columns: int, column: int, labels: Collection[str], delimiter: str) -> bool:
    """Whether a text that spans lines holds a line that would be a row, with a label that other rows have."""
    spanning = [index for index, field in enumerate(record.fields) if "\n" in field or "\r" in field]
    if not record.lines or not spanning or spanning[0] <= column <= spanning[-1]:
        return False
    # The row's own label is in its first line or in its last one.
    inner = record.lines[1:] if column < spanning[0] else record.lines[:-1]
    numbers = bool(labels) and all(map(_is_number, labels))
    for line in inner:
        fields = line.rstrip("\r\n").split(delimiter)
        if len(fields) == columns and (fields[column] in labels or (numbers and _is_number(fields[column]))):
            return True
    return False


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_quoted_after_all(rows: Iterable[_Record]) -> bool:
    """Whether all marks of a table without quoting are where quoting would have them, some of them doubled."""
    marked = [field for record in rows for field in record.fields if '"' in field]
    return all(map(_enclosed, marked)) and any(map(_doubled, marked))


def _enclosed(field: str) -> bool:
    return len(field) > 1 and field[0] == field[-1] == '"' and '"' not in field[1:-1].replace('""', "")


def _doubled(field: str) -> bool:
    return _enclosed(field) and '""' in field[1:-1]
