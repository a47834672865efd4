# SPDX-License-Identifier: Apache-2.0
"""Files of text: which format a file has, how its characters are written, and its lines.

What cannot be read is refused by name with the remedy: a workbook, an archive, another encoding."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from fedcore.errors import DataError

__all__ = ["FileKind", "kind_of", "lines_of"]

FileKind = Literal["csv", "tsv", "jsonl", "parquet"]

_ENDINGS: Final[dict[str, FileKind]] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
_WORKBOOK: Final = "a workbook, not text", "save its sheet as CSV (UTF-8), and name that file"
_ARCHIVE: Final = "an archive, not text", "unpack it, and name the file that was in it"
_OTHERS: Final = {
    **dict.fromkeys((".xlsx", ".xlsm", ".xls", ".ods"), _WORKBOOK),
    **dict.fromkeys((".zip", ".gz", ".bz2", ".xz", ".zst", ".tar", ".tgz"), _ARCHIVE),
    ".json": (
        "JSON, of which one object a line is read",
        'if it is that, set data.format to "jsonl"; a list: jq -c ".[]"',
    ),
}
_MAGIC: Final = (
    (b"PK\x03\x04", _WORKBOOK),
    (b"\xd0\xcf\x11\xe0", _WORKBOOK),
    (b"\x1f\x8b", _ARCHIVE),
    (b"BZh", _ARCHIVE),
    (b"\xfd7zXZ", _ARCHIVE),
    (b"\x28\xb5\x2f\xfd", _ARCHIVE),
    (b"PAR1", ("Parquet, not text", 'set data.format to "parquet"')),
    (b"version https://git-lfs", ("a pointer of Git LFS, not the data", "git lfs pull")),
    (b"%PDF", ("a PDF, not text", "write its rows as CSV or JSON lines")),
)
# UTF-32's little-endian mark begins with UTF-16's.
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UNUSED: Final = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")
"""Bytes that Windows-1252 has no character for."""
_LINE_END: Final = re.compile("\r\n|\r|\n")


def kind_of(path: Path, wanted: str) -> FileKind:
    """A file's format, by its ending where `wanted` is `auto`.

    Raises:
        DataError: Nothing that is read; the remedy says what to do with such a file.

    Example:
        >>> kind_of(Path("rows.TSV"), "auto"), kind_of(Path("rows.txt"), "csv")
        ('tsv', 'csv')
    """
    if wanted in ("csv", "tsv", "jsonl", "parquet"):
        return wanted  # type: ignore[return-value]
    ending = path.suffix.lower()
    if ending in _ENDINGS:
        return _ENDINGS[ending]
    message, remedy = _OTHERS.get(
        ending, (f"cannot tell the format from {path.suffix!r}", "set data.format to csv, tsv, jsonl or parquet")
    )
    raise DataError(message, place=str(path), remedy=remedy)


def lines_of(path: Path) -> Iterator[str]:
    """Lines with their ends (`\\n`, `\\r\\n` or `\\r`), in the encoding that the file's first bytes name; UTF-8 where
    they name none.

    Raises:
        DataError: The file is no text, or in another encoding; the place is `file:line`.
    """
    with path.open("rb") as binary:
        head = binary.read(32)
    for magic, (message, remedy) in _MAGIC:
        if head.startswith(magic):
            raise DataError(message, place=str(path), remedy=remedy)
    encoding = next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")
    try:
        with path.open(encoding=encoding, newline="") as file:
            for number, line in enumerate(file, 1):
                if "\0" in line:
                    raise _zero_bytes(path, number)
                yield line
    except UnicodeError:
        raise _undecodable(path, encoding) from None


def _undecodable(path: Path, encoding: str) -> DataError:
    """Which line is not what it should be, and what the file probably is."""
    data = path.read_bytes()
    try:
        data.decode(encoding)
        return DataError("it changes while it is read", place=str(path), remedy="try again")
    except UnicodeDecodeError as error:
        before, byte = data[: error.start], data[error.start]
    if encoding == "utf-8" and b"\0" in data[:4096]:
        return _zero_bytes(path, 1)
    line = len(_LINE_END.findall(before.decode(encoding, "replace"))) + 1
    what = "UTF-8" if encoding.startswith("utf-8") else encoding.upper()
    remedy = "write it anew as UTF-8"
    if what == "UTF-8" and not _UNUSED.search(data):
        remedy = f"if it is Windows-1252 (Latin-1): iconv -f WINDOWS-1252 -t UTF-8 {path.name} > new{path.suffix}"
    return DataError(f"not {what}: byte 0x{byte:02x}", place=f"{path}:{line}", remedy=remedy)


def _zero_bytes(path: Path, line: int) -> DataError:
    with path.open("rb") as file:
        head = file.read(4096)
    for name, place in (("UTF-16LE", 1), ("UTF-16BE", 0)):
        zeros = head[place::2].count(0)
        if 2 * zeros > len(head) // 2:
            remedy = f"if it is {name}: iconv -f {name} -t UTF-8 {path.name} > new{path.suffix}"
            return DataError(
                "zero bytes, as UTF-16 without a byte order mark has", place=f"{path}:{line}", remedy=remedy
            )
    return DataError("a zero byte: this is no text", place=f"{path}:{line}", remedy="write it anew as UTF-8")
