# SPDX-License-Identifier: Apache-2.0
"""A node's own text: CSV, TSV (GLUE's layout, no quoting), JSON lines, Parquet, or a Python function.

Every wrong row is refused with its line and the remedy: a typo in a column's name must not become a model trained on
nothing. The worker, `fedkrso data check`, `fedkrso doctor` and `--check` all read here, and say the same."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import msgspec

from edge_client.worker.data.conversations import Message, conversation_of, has_conversation
from edge_client.worker.data.sources import Row, call_by_name, read_rows
from fedcore.config.sections import DataSection, TaskSection
from fedcore.config.tasks import Target, task_of
from fedcore.errors import DataError

__all__ = [
    "Example",
    "check_row",
    "check_rows",
    "example_of",
    "load_examples",
    "load_texts",
    "only_right",
    "resolved_task",
    "together",
]

T = TypeVar("T")
_MOST_RANGES: Final = 8
_LINE: Final = re.compile(r"(?::| row )(\d+)(?::|$)")
_USUAL: Final = DataSection(source="")


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
    return only_right(section, lambda row, place: example_of(row, place, section, task))


def check_rows(section: DataSection, task: TaskSection | None = None) -> tuple[int, int]:
    """How many rows there are, all of which can be used, and how many of them have a label.

    Args:
        section: Where they are.
        task: What is to be learned of them; None where only the run's plan says it: then a row has its columns, and its
            text is text.

    Raises:
        DataError: As of `load_examples`.
    """
    if task is not None:
        rows = load_examples(section, task)
        return len(rows), sum(example.target is not None for example in rows)
    found = only_right(section, lambda row, place: check_row(row, place, section))
    return len(found), sum(found)


def only_right(section: DataSection, made: Callable[[Row, str], T]) -> list[T]:
    """What is made of each row of a source.

    Raises:
        DataError: The source cannot be read, has no rows, or has some that are wrong (`together`).
    """
    right, wrong = list[T](), list[DataError]()
    for place, row in read_rows(section):
        try:
            if isinstance(row, DataError):
                raise row
            right.append(made(row, place))
        except DataError as error:
            wrong.append(error)
    if wrong:
        raise together(wrong)
    if not right:
        raise DataError("there are no rows", place=section.source, remedy="at least one is needed")
    return right


def together(wrong: Sequence[DataError]) -> DataError:
    """One error of those of several rows: the first one's, and where the others are.

    Example:
        >>> empty = [DataError("the text is empty", place=f"a.csv:{line}", remedy="leave it out") for line in (2, 4, 5)]
        >>> together(empty).one_line()
        'a.csv:2: the text is empty, and 2 more rows are wrong: 4-5 (leave it out)'
    """
    first, *others = wrong
    if not others:
        return first
    ranges: list[list[int]] = []
    for line in (int(found[1]) for error in others if (found := _LINE.search(error.place))):
        if ranges and line == ranges[-1][1] + 1:
            ranges[-1][1] = line
        else:
            ranges.append([line, line])
    said = [str(start) if start == stop else f"{start}-{stop}" for start, stop in ranges]
    where = ", ".join(said[:_MOST_RANGES]) + (", ..." if len(said) > _MOST_RANGES else "")
    more = "1 more row is wrong" if len(others) == 1 else f"{len(others):,} more rows are wrong"
    return DataError(
        f"{first.message}, and {more}{f': {where}' if where else ''}", place=first.place, remedy=first.remedy
    )


def resolved_task(task: TaskSection) -> TaskSection:
    """A task whose labels are a tuple, also where the job names a function that gives them.

    Raises:
        DataError: No such function, or it fails.
        ConfigError: What it gives is no label set.
    """
    if not isinstance(task.labels, str):
        return task
    given = call_by_name(task.labels, {}, "task.labels")
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise DataError(f"{task.labels} gives {type(given).__name__}, not labels", place="task.labels")
    return msgspec.structs.replace(task, labels=tuple(map(str, given)))


def load_texts(section: DataSection, most: int, task: TaskSection) -> list[Example]:
    """Texts of a data section, whatever their labels: `most` of them, evenly spread over the source.

    Raises:
        DataError: As of `load_examples`.
    """
    what, pair = task_of(task), section.text_pair

    def made(row: Row, place: str) -> Example:
        if what.conversations:
            return _conversation(row, place, section)
        second = _text(row, pair, "data.text_pair", place) if pair else None
        return Example(_text(row, section.text, "data.text", place), second, None, place=place)

    texts = only_right(section, made)
    return [texts[index * len(texts) // most] for index in range(most)] if most < len(texts) else texts


def check_row(row: Row, place: str, section: DataSection) -> bool:
    """Whether a row has a label; it has the section's columns, whatever the task wants of them.

    Raises:
        DataError: A column is not there, or its text is not text. A label that nobody named may be missing, where no
            column's name is like it: not every task wants one.
    """
    if has_conversation(row, section):
        conversation_of(row, place, section)
        return False
    _text(row, section.text, "data.text", place)
    if section.text_pair:
        _text(row, section.text_pair, "data.text_pair", place)
    named = section.label != _USUAL.label
    if section.label and (named or difflib.get_close_matches(section.label, map(str, row), 1)):
        _column(row, section.label, "data.label", place)
    return bool(section.label) and section.label in row


def example_of(row: Row, place: str, section: DataSection, task: TaskSection) -> Example:
    """What a row is for a task.

    Raises:
        DataError: It cannot be learned from; the place says why.
    """
    what = task_of(task)
    if what.conversations:
        return _conversation(row, place, section)
    if section.text not in row and has_conversation(row, section):
        remedy = 'set task.kind to "instruction"'
        raise DataError(f"a conversation, which {task.kind} does not learn", place=place, remedy=remedy)
    text = _text(row, section.text, "data.text", place)
    if not what.labelled:
        return _plain(text, row, place, section, task.kind)
    if what.pair and not section.text_pair:
        raise DataError(f"{task.kind} needs a second column", place="data.text_pair", remedy="name it")
    pair = _text(row, section.text_pair, "data.text_pair", place) if section.text_pair else None
    if not section.label:
        raise DataError(f"{task.kind} needs a label column", place="data.label", remedy="name it")
    raw = _column(row, section.label, "data.label", place)
    if raw is None:
        raise DataError("there is no label", place=f"{place}: {section.label}", remedy="leave the row out")
    return Example(text, pair, what.target(raw, place), place=place)


def _plain(text: str, row: Row, place: str, section: DataSection, kind: str) -> Example:
    """A text that is learned by itself: an answer beside it would be dropped without a word."""
    for key in ("text_pair", "label"):
        name = getattr(section, key)
        if name and name in row:
            raise DataError(
                f"{kind} learns column {section.text!r} alone, and {name!r} would not be learned",
                place=f"{place}: data.{key}",
                remedy=f'for questions and answers set task.kind to "instruction", data.prompt to {section.text!r} and '
                f'data.completion to {name!r}; to leave the column out, set data.{key} to ""',
            )
    if section.text_pair:
        _column(row, section.text_pair, "data.text_pair", place)
    return Example(text, None, None, place=place)


def _conversation(row: Row, place: str, section: DataSection) -> Example:
    said = conversation_of(row, place, section)
    if isinstance(said, str):
        return _plain(said, row, place, section, "plain text")
    return Example("", None, None, said, place)


def _column(row: Row, name: str, key: str, place: str) -> Any:
    if name not in row:
        near = difflib.get_close_matches(name, map(str, row), 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DataError(
            f"no column {name!r}", place=f"{place}: {key}", remedy=f"{hint}columns: {', '.join(map(str, row))}"
        )
    return row[name]


def _text(row: Row, name: str, key: str, place: str) -> str:
    """A column's text.

    Raises:
        DataError: It is none, or there is nothing in it: a model would learn what its padding says.
    """
    value = _column(row, name, key, place)
    if not isinstance(value, str):
        raise DataError(f"column {name!r} holds {type(value).__name__}, not text", place=place)
    if not value.strip():
        raise DataError("the text is empty", place=f"{place}: {name}", remedy="leave the row out")
    try:
        value.encode()
    except UnicodeEncodeError:
        said, remedy = "half a character (a lone surrogate)", "write the text anew"
        raise DataError(said, place=f"{place}: {name}", remedy=remedy) from None
    return value
