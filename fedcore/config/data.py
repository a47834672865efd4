# SPDX-License-Identifier: Apache-2.0
"""Data as a program has it: rows, a path, or a function, made into a `[data]` section that a worker process can
read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from fedcore.config.sections import DataSection
from fedcore.errors import DataError
from fedcore.system.durable import flush_folder

__all__ = ["data_section", "importable"]


def data_section(data: object, given: DataSection | None, path: Path) -> DataSection:
    """The section of a program's own data.

    Training happens in another process, so rows are written to a file that only their owner can read, on this machine.
    A function that can be imported stays a name: the worker calls it, and nothing is written.

    Args:
        data: A section, a path, a function, or an iterable of rows (dicts, or a `datasets.Dataset`).
        given: The section that a file had; its columns hold for rows too.
        path: Where rows are kept.

    Raises:
        DataError: There are no rows, or one is no dict, or holds what is no text and no number.

    Example:
        >>> data_section("reviews.csv", DataSection(source="", text="review"), Path("rows.jsonl")).text
        'review'
    """
    before = given if given is not None else DataSection(source="")
    if isinstance(data, DataSection):
        return data
    if isinstance(data, str | os.PathLike):
        text = os.fspath(data)
        named = isinstance(text, str) and ":" in text and "/" not in text
        return msgspec.structs.replace(before, source=text if named else str(Path(text).absolute()), format="auto")
    if callable(data):
        name = importable(data)
        if name is not None:
            return msgspec.structs.replace(before, source=name, format="auto")
        data = data(**before.arguments)
    if not isinstance(data, Iterable):
        raise DataError(
            f"{type(data).__name__} is no data", place="data", remedy="give rows (dicts), a path, or a function"
        )
    _write_rows(data, path)
    return msgspec.structs.replace(before, source=str(path.absolute()), format="jsonl", arguments={})


def importable(function: Callable[..., Any]) -> str | None:
    """`module:name` of a function that another process can import; None for what only this program has."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    return f"{module}:{name}" if module and module != "__main__" and name.isidentifier() else None


def _write_rows(rows: Iterable[Any], path: Path) -> None:
    """One JSON object a line, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    beside.touch(mode=0o600)
    count = 0
    try:
        with beside.open("wb") as file:
            for count, row in enumerate(rows, start=1):
                file.write(_line(row, count) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if not count:
            raise DataError("there are no rows", place="data", remedy="training needs at least one example")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    flush_folder(path.parent)


def _line(row: Any, number: int) -> bytes:
    if not isinstance(row, Mapping):
        raise DataError(
            f"{type(row).__name__} is no row",
            place=f"data: row {number}",
            remedy='a row is a dict: {"text": "...", ...}',
        )
    try:
        return msgspec.json.encode(dict(row))
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise DataError(
            f"it cannot be written: {error}", place=f"data: row {number}", remedy="columns hold text and numbers"
        ) from None
