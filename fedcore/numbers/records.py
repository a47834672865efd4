# SPDX-License-Identifier: Apache-2.0
"""Record files: how accumulators and states lie on disk and cross the wire.

A file is a sequence of msgpack objects: one header (a map with `format`), then one map per record, then an end marker
with the number of records, so that a file cut short is noticed. Readers hold one record at a time. Numbers are
little-endian.

Files come from elsewhere. A reader's memory is below 2 MB plus 24 bytes for each number of the largest record that it
allows: it refuses a larger one by its shape before anything is unpacked."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgpack

from fedcore.errors import MalformedMessage
from fedcore.fields.unpacking import Containers
from fedcore.numbers.accumulator import MatrixEntry, RowScaled
from fedcore.numbers.codecs import codec_of
from fedcore.numbers.coding import Kind, Width
from fedcore.system.durable import flush_folder

__all__ = [
    "MAX_NUMBERS",
    "Record",
    "pack_record",
    "read_header",
    "read_record",
    "read_records",
    "record_places",
    "unpack_record",
    "write_records",
]

MAX_NUMBERS: Final = 2**27
"""Numbers in a record, at most."""
# A tensor's name, and the first row of a block of it.
_MAX_NAME: Final = 540
_HEADER_BYTES: Final = 65_536
# Maps, lists and keys in a header: of an update, two numbers for each of what its node measured.
_HEADER_CONTAINERS: Final = 64
_READ_BYTES: Final = 65_536
_LEVEL: Final = 6
_INTEGERS: Final[tuple[Kind, ...]] = ("integers",)


@dataclass(frozen=True)
class Record:
    """One named matrix; `difference` says that q is modulo 2**16 against an earlier version."""

    name: str
    part: MatrixEntry
    bits: Width
    difference: bool = False
    kind: Kind = "integers"

    @property
    def integers(self) -> RowScaled:
        """The matrix entry, of a record that holds integers."""
        assert isinstance(self.part, RowScaled)
        return self.part


def pack_record(record: Record, level: int = _LEVEL) -> dict[str, Any]:
    """A record as a msgpack map. Compressed without loss where that is smaller."""
    rows, columns = record.part.shape
    return {
        "name": record.name,
        "rows": rows,
        "columns": columns,
        "bits": record.bits,
        "difference": record.difference,
        **({} if record.kind == "integers" else {"kind": record.kind}),
        **codec_of(record.kind).pack(record.part, record.bits, level),
    }


def unpack_record(raw: Any, largest: int = MAX_NUMBERS, kinds: Collection[Kind] = _INTEGERS) -> Record:
    """A msgpack map as a record; every size is checked before anything is allocated.

    Args:
        raw: What msgpack gave.
        largest: Numbers that the record may have.
        kinds: What kinds of numbers it may have (`fedcore.numbers.codecs`).

    Raises:
        MalformedMessage: Anything but a record, or a larger one.
    """
    try:
        name, rows, columns, bits, difference = raw["name"], raw["rows"], raw["columns"], raw["bits"], raw["difference"]
        kind = raw.get("kind", "integers")
    except (KeyError, TypeError, AttributeError):
        raise MalformedMessage("not a record") from None
    # By exact type: True is an int to isinstance, and 8.0 equals 8.
    typed = all(type(x) is int for x in (rows, columns, bits)) and type(name) is str and type(difference) is bool
    if not typed or type(kind) is not str or (kind in kinds and bits not in codec_of(kind).widths):
        raise MalformedMessage("a record has fields of the wrong type")
    if not 0 < len(name) <= _MAX_NAME:
        raise MalformedMessage(f"a record's name has {len(name)} characters")
    if kind not in kinds:
        raise MalformedMessage("a record of a kind that does not belong here", place=name)
    if not (rows > 0 and columns > 0 and rows * columns <= largest):
        raise MalformedMessage(f"a record of {rows} x {columns} is outside the limits", place=name)
    part = codec_of(kind).unpack(raw, (rows, columns), bits, name)
    if not difference and isinstance(part, RowScaled) and part.extremes[0] <= -(2 ** (bits - 1)):
        raise MalformedMessage("a number is outside the symmetric range", place=name)
    return Record(name, part, bits, difference, kind)


def write_records(path: Path, header: dict[str, Any], records: Iterable[Record], *, level: int = _LEVEL) -> None:
    """Write a record file beside `path`, flush it to the disk and rename it there: it exists whole or not at all.

    Args:
        path: The file.
        header: Its first object, with `format`.
        records: In the file's order.
        level: Of zlib: 1 is fast, 9 small.
    """
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(msgpack.packb(header))
        count = 0
        for record in records:
            file.write(msgpack.packb(pack_record(record, level)))
            count += 1
        file.write(msgpack.packb({"end": count}))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    flush_folder(path.parent)


class _Objects:
    """The maps of a file after its header, one at a time.

    Args:
        file: At the first record.
        place: Named in errors.
        largest: Numbers that a record may have.
        number_bytes: What each takes at most.
    """

    def __init__(self, file: BinaryIO, place: str, largest: int, number_bytes: int) -> None:
        # Exponents are fewer than numbers, and grow by a little when they do not compress.
        bytes_each = number_bytes * largest + 1024
        self._place = place
        self._count = Containers(1)
        self._unpacker = msgpack.Unpacker(
            file,
            read_size=_READ_BYTES,
            max_buffer_size=2 * bytes_each + 2 * _READ_BYTES,
            max_bin_len=bytes_each,
            max_array_len=0,
            object_hook=self._count,
            list_hook=self._count,
            **_SMALL,
        )

    def next(self) -> dict[str, Any]:
        """The next map; nothing is nested in it."""
        self._count.begin()
        return _unpacked(self._unpacker, self._place)

    def tell(self) -> int:
        """How many bytes of the file were read so far."""
        return int(self._unpacker.tell())


_SMALL: Final[dict[str, Any]] = {
    "raw": False,
    "strict_map_key": True,
    "max_map_len": 16,
    "max_str_len": 4 * _MAX_NAME,
    "max_ext_len": 0,
}


def _unpacked(unpacker: msgpack.Unpacker, place: str) -> dict[str, Any]:
    try:
        item = unpacker.unpack()
    except (msgpack.OutOfData, msgpack.UnpackException, ValueError, TypeError, RecursionError) as error:
        raise MalformedMessage(f"the file is cut short or damaged: {error}", place=place) from None
    if not isinstance(item, dict):
        raise MalformedMessage("the file holds something that is not a map", place=place)
    return item


def _header(file: BinaryIO, place: str) -> tuple[dict[str, Any], int]:
    """A file's header, which has at most 64 KiB, and where it ends."""
    count = Containers(_HEADER_CONTAINERS)
    limits = {**_SMALL, "max_map_len": _HEADER_CONTAINERS, "max_bin_len": 0, "max_array_len": 1024}
    unpacker = msgpack.Unpacker(None, read_size=_READ_BYTES, object_hook=count, list_hook=count, **limits)
    unpacker.feed(file.read(_HEADER_BYTES))
    return _unpacked(unpacker, place), int(unpacker.tell())


def read_header(path: Path, expected_format: str) -> dict[str, Any]:
    """The header of a record file: a map whose values are numbers, texts, and lists of at most 1024 of them.

    Raises:
        MalformedMessage: Not a record file of that format.
    """
    with path.open("rb") as file:
        header, _ = _header(file, path.name)
    if header.get("format") != expected_format:
        raise MalformedMessage(f"not a file of format {expected_format!r}", place=path.name)
    return header


def read_records(path: Path, *, largest: int = MAX_NUMBERS, kinds: Collection[Kind] = _INTEGERS) -> Iterator[Record]:
    """The records of a file, one at a time; the end marker is checked.

    Args:
        path: The file.
        largest: Numbers that the largest record may have. Pass what the reader expects: a few compressed bytes can
            claim a hundred million.
        kinds: What kinds of numbers are expected.

    Raises:
        MalformedMessage: The file is cut short, damaged, holds a larger record or one of another kind, or more than it
            says.
    """
    for _, item in _packed(path, largest, kinds):
        yield unpack_record(item, min(largest, MAX_NUMBERS), kinds)


def record_places(
    path: Path, *, largest: int = MAX_NUMBERS, kinds: Collection[Kind] = _INTEGERS
) -> Iterator[tuple[str, int]]:
    """Names of a file's records, and where each begins, for who reads them in an order of its own (`read_record`);
    nothing is unpacked.

    Args:
        path: The file.
        largest: As `read_records`.
        kinds: As `read_records`.

    Raises:
        MalformedMessage: As `read_records`, but for what a record holds.
    """
    for place, item in _packed(path, largest, kinds):
        name = item.get("name")
        if not isinstance(name, str):
            raise MalformedMessage("a record without a name", place=path.name)
        yield name, place


def read_record(path: Path, place: int, *, largest: int = MAX_NUMBERS, kinds: Collection[Kind] = _INTEGERS) -> Record:
    """The record that begins at a place of a file.

    Args:
        path: The file.
        place: Of `record_places`.
        largest: As `read_records`.
        kinds: As `read_records`.

    Raises:
        MalformedMessage: There is none, or a larger one, or one of another kind.
    """
    most = min(largest, MAX_NUMBERS)
    with path.open("rb") as file:
        file.seek(place)
        return unpack_record(_Objects(file, path.name, most, _number_bytes(kinds)).next(), most, kinds)


def _packed(path: Path, largest: int, kinds: Collection[Kind]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of a file as they are packed, each with its place; the end marker is checked."""
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        _, start = _header(file, path.name)
        file.seek(start)
        objects = _Objects(file, path.name, min(largest, MAX_NUMBERS), _number_bytes(kinds))
        count, place = 0, start
        while "end" not in (item := objects.next()):
            yield place, item
            count, place = count + 1, start + objects.tell()
        if item != {"end": count}:
            raise MalformedMessage(f"{count} records, and an end marker that does not say so", place=path.name)
        if start + objects.tell() != size_bytes:
            raise MalformedMessage("there is more behind the end marker", place=path.name)


def _number_bytes(kinds: Collection[Kind]) -> int:
    """What a number takes at most."""
    return max(max(codec_of(kind).widths) for kind in kinds) // 8
