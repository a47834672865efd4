# SPDX-License-Identifier: Apache-2.0
"""Where rows come from: a file of one of the formats, or a Python function; each row with its place, as it is read."""

from __future__ import annotations

import difflib
import importlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edge_client.worker.data.tables import table_rows
from edge_client.worker.data.textfiles import kind_of, lines_of
from fedcore.config.sections import DataSection
from fedcore.errors import DataError, FedkrsoError

__all__ = ["Row", "call_by_name", "function_by_name", "read_rows", "rows_of"]

Row = Mapping[str, Any]


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
        yield from _called_rows(section)
        return
    path = Path(source)
    if path.is_dir():
        raise DataError("a folder, not a file", place=source, remedy="set data.source to the file in it")
    if not path.is_file():
        raise DataError("no such file", place=source, remedy="set data.source to a file or package.module:function")
    try:
        kind = kind_of(path, section.format)
        if kind == "parquet":
            yield from _parquet_rows(path, source)
        elif kind == "jsonl":
            yield from _json_rows(lines_of(path), source)
        else:
            columns = (
                section.text,
                section.text_pair,
                section.label,
                section.messages,
                section.prompt,
                section.completion,
            )
            yield from table_rows(
                lines_of(path),
                source,
                quoted=kind == "csv",
                sure=section.format == "tsv",
                wanted={name for name in columns if name},
                label=section.label or None,
            )
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", place=source, remedy="let this user read it") from None


def _called_rows(section: DataSection) -> Iterator[tuple[str, Row | DataError]]:
    """What a function gives. It is somebody's own code: whatever it raises is told, wherever it raises it."""
    source, number = section.source, 0
    given = call_by_name(source, section.arguments, "data.source")
    try:
        for number, row in enumerate(given, 1):
            if isinstance(row, tuple):
                row = dict(zip((section.text, section.label or "label"), row, strict=False))
            place = f"{source} row {number}"
            said = f"{type(row).__name__} is no row"
            yield place, row if isinstance(row, Mapping) else DataError(said, place=place, remedy="give dicts")
    except FedkrsoError:
        raise
    except Exception as error:
        said = f"it failed after {number} rows: {type(error).__name__}: {error}"
        raise DataError(said, place=source, remedy="mend the function") from error


def _parquet_rows(path: Path, source: str) -> Iterator[tuple[str, Row | DataError]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        remedy = "pip install 'fedkrso[parquet]', or write it as JSON lines"
        raise DataError("Parquet needs pyarrow, which is not installed", place=source, remedy=remedy) from None
    number = 0
    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            if twice := next((name for name in names if names.count(name) > 1), ""):
                raise DataError(f"two columns are named {twice!r}", place=source, remedy="rename one")
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{source} row {number}", row
    except (ArrowException, OSError) as error:
        said = f"not Parquet: {str(error).splitlines()[0]}"
        raise DataError(said, place=source, remedy="write the file again") from None


def _json_rows(file: Iterable[str], source: str) -> Iterator[tuple[str, Row | DataError]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        place, remedy = f"{source}:{number}", 'each line is {"text": ..., "label": ...}'
        try:
            row = json.loads(line, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            if line.lstrip().startswith("["):
                remedy += ', and not a list: jq -c ".[]" makes lines of one'
            yield place, DataError(f"not JSON: {error}", place=place, remedy=remedy)
            continue
        yield place, row if isinstance(row, dict) else DataError("not a JSON object", place=place, remedy=remedy)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object none of whose keys is there twice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"two values are named {next(n for n in names if names.count(n) > 1)!r}")
    return made


def call_by_name(name: str, arguments: Mapping[str, Any], key: str) -> Any:
    """Call `package.module:function`.

    Raises:
        DataError: No such module or function, or it fails; `key` names the setting.
    """
    function = function_by_name(name, key)
    try:
        return function(**arguments)
    except FedkrsoError:
        raise
    except Exception as error:
        # Somebody's own code: whatever it raises is told.
        said = f"{name} failed: {type(error).__name__}: {error}"
        raise DataError(said, place=key, remedy="check the arguments, or mend the function") from error


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
    except Exception as error:
        said = f"importing {module_name!r} failed: {type(error).__name__}: {error}"
        raise DataError(said, place=key, remedy="mend the module") from error
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
