# SPDX-License-Identifier: Apache-2.0
"""A node's own text: CSV, TSV (GLUE's layout, no quoting), JSON lines, or a Python function.

Every wrong row is refused with its line and the remedy: a typo in a column's name must not become a model trained on
nothing."""

from __future__ import annotations

import csv
import difflib
import importlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_client.worker.data.conversations import Message, conversation_of, has_conversation
from fedcore.config.sections import DataSection, TaskSection
from fedcore.config.tasks import Target, task_of
from fedcore.errors import DataError

__all__ = [
    "Example",
    "Row",
    "call_by_name",
    "check_row",
    "example_of",
    "function_by_name",
    "load_examples",
    "load_texts",
    "read_rows",
    "rows_of",
]


Row = Mapping[str, Any]


@dataclass(frozen=True)
class Example:
    """One text, pair of texts, or conversation, with what is to be learned: a label's index, a score, or None for what
    is said itself."""

    text: str
    text_pair: str | None
    target: Target
    messages: tuple[Message, ...] = ()
    """A conversation, instead of a text."""
    place: str = field(default="", compare=False)
    """Where it was read, for what is said of it later."""


def load_examples(section: DataSection, task: TaskSection) -> list[Example]:
    """All examples of a data section.

    Raises:
        DataError: The place is `file:line` (or the function and row), the remedy what to change.
    """
    examples = [example_of(row, place, section, task) for place, row in rows_of(section)]
    if not examples:
        raise DataError("there are no rows", place=section.source, remedy="training needs at least one example")
    return examples


def load_texts(section: DataSection, most: int, task: TaskSection) -> list[Example]:
    """Texts of a data section, whatever their labels: `most` of them, evenly spread over the source.

    Raises:
        DataError: As of `load_examples`.
    """
    rows = list(rows_of(section))
    if not rows:
        raise DataError("there are no rows", place=section.source, remedy="calibration needs at least one text")
    chosen = [rows[index * len(rows) // most] for index in range(most)] if most < len(rows) else rows
    if task_of(task).conversations:
        return [_conversation(row, place, section) for place, row in chosen]
    pair = section.text_pair
    return [
        Example(
            _text(row, section.text, "text", place),
            None if pair is None else _text(row, pair, "text_pair", place),
            None,
            place=place,
        )
        for place, row in chosen
    ]


def call_by_name(name: str, arguments: Mapping[str, Any], key: str) -> Any:
    """Call `package.module:function`.

    Raises:
        DataError: No such module or function, or it fails; `key` names the setting.
    """
    function = function_by_name(name, key)
    try:
        return function(**arguments)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} failed: {error}", place=key, remedy="check the arguments") from None


def function_by_name(name: str, key: str) -> Callable[..., Any]:
    """The function that `package.module:function` names.

    Raises:
        DataError: No such module or function; `key` names the setting.
    """
    module_name, _, function_name = name.partition(":")
    # Functions may live beside the job file, where the command was started.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise DataError(
            f"cannot import {module_name!r}: {error}", place=key, remedy="install it, or start where it lies"
        ) from None
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [n for n in dir(module) if callable(getattr(module, n)) and not n.startswith("_")]
        near = difflib.get_close_matches(function_name, known, 1)
        raise DataError(
            f"{module_name} has no function {function_name!r}",
            place=key,
            remedy=f"did you mean {near[0]!r}?" if near else "",
        )
    found: Callable[..., Any] = function
    return found


def check_row(row: Mapping[str, Any], place: str, section: DataSection) -> None:
    """Whether a row has the section's columns, whatever the task wants of them.

    Raises:
        DataError: A column is not there, or its text is not text.
    """
    if has_conversation(row, section):
        conversation_of(row, place, section)
        return
    _text(row, section.text, "data.text", place)
    if section.text_pair is not None:
        _text(row, section.text_pair, "data.text_pair", place)
    if section.label is not None:
        _column(row, section.label, "data.label", place)


def rows_of(section: DataSection) -> Iterator[tuple[str, Row]]:
    """Each row with its place, as it is read.

    Raises:
        DataError: The source cannot be read, or a row is not one.
    """
    for place, row in read_rows(section):
        if isinstance(row, DataError):
            raise row
        yield place, row


def read_rows(section: DataSection) -> Iterator[tuple[str, Row | DataError]]:
    """Each row with its place, or what is wrong with it.

    Raises:
        DataError: The source cannot be read.
    """
    source = section.source
    if ":" in source and not Path(source).exists() and "/" not in source:
        for number, row in enumerate(call_by_name(source, section.arguments, "data.source"), 1):
            if isinstance(row, tuple):
                row = dict(zip((section.text, section.label or "label"), row, strict=False))
            place = f"{source} row {number}"
            said = f"{type(row).__name__} is no row"
            yield place, row if isinstance(row, Mapping) else DataError(said, place=place, remedy="give dicts")
        return
    path = Path(source)
    if not path.is_file():
        raise DataError("no such file", place=source, remedy="set data.source to a file or package.module:function")
    kind = path.suffix[1:].lower() if section.format == "auto" else section.format
    if kind not in ("csv", "tsv", "jsonl"):
        raise DataError(
            f"cannot tell the format from {path.suffix!r}", place=source, remedy="set data.format to csv, tsv or jsonl"
        )
    try:
        # utf-8-sig also takes files without a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _json_rows(file, source) if kind == "jsonl" else _table_rows(file, source, kind)
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8: {error.reason} at byte {error.start}", place=source, remedy="convert it to UTF-8"
        ) from None


def _json_rows(file: Iterable[str], source: str) -> Iterator[tuple[str, Row | DataError]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        place = f"{source}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            yield place, DataError(f"not JSON: {error}", place=place, remedy="repair the line, or leave it out")
            continue
        wrong = DataError("not a JSON object", place=place, remedy='each line is {"text": ..., "label": ...}')
        yield place, row if isinstance(row, dict) else wrong


def _table_rows(file: Iterable[str], source: str, kind: str) -> Iterator[tuple[str, Row | DataError]]:
    # GLUE's tables are not quoted: a quotation mark is an ordinary character.
    reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if kind == "tsv" else csv.reader(file)
    header = next(reader, None)
    if header is None:
        raise DataError("the file is empty", place=source, remedy="the first line names the columns")
    for row in reader:
        if not row:
            continue
        place = f"{source}:{reader.line_num}"
        if len(row) != len(header):
            said = f"{len(row)} columns where the header has {len(header)}"
            yield place, DataError(said, place=place, remedy="repair the line")
        else:
            yield place, dict(zip(header, row, strict=True))


def example_of(row: Mapping[str, Any], place: str, section: DataSection, task: TaskSection) -> Example:
    """What a row is for a task.

    Raises:
        DataError: It cannot be learned from; the place says why.
    """
    what = task_of(task)
    if what.conversations:
        return _conversation(row, place, section)
    text = _text(row, section.text, "data.text", place)
    pair = None
    if what.pair and section.text_pair is None:
        raise DataError(f"{task.kind} needs a second column", place="data.text_pair", remedy="name it")
    if section.text_pair is not None:
        pair = _text(row, section.text_pair, "data.text_pair", place)
    if not what.labelled:
        return Example(text, pair, None, place=place)
    if section.label is None:
        raise DataError(f"{task.kind} needs a label column", place="data.label", remedy="name it")
    raw = _column(row, section.label, "data.label", place)
    return Example(text, pair, what.target(raw, place), place=place)


def _conversation(row: Mapping[str, Any], place: str, section: DataSection) -> Example:
    said = conversation_of(row, place, section)
    text, messages = (said, ()) if isinstance(said, str) else ("", said)
    return Example(text, None, None, messages, place)


def _column(row: Mapping[str, Any], name: str, key: str, place: str) -> Any:
    if name not in row:
        near = difflib.get_close_matches(name, map(str, row), 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DataError(
            f"no column {name!r}", place=f"{place}: {key}", remedy=f"{hint}columns: {', '.join(map(str, row))}"
        )
    return row[name]


def _text(row: Mapping[str, Any], name: str, key: str, place: str) -> str:
    value = _column(row, name, key, place)
    if not isinstance(value, str):
        raise DataError(f"column {name!r} holds {type(value).__name__}, not text", place=place)
    return value
