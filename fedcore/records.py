# SPDX-License-Identifier: Apache-2.0
"""Record files: how accumulators and states lie on disk and cross the wire.

A file is a sequence of msgpack objects: one header (a map with `format`), then one map per record, then an end marker with
the number of records, so that a file cut short is noticed. Readers hold one record at a time. Numbers are little-endian.

Files come from elsewhere. A reader's memory is below 2 MB plus 24 bytes for each number of the largest record that it allows: it refuses a
larger one by its shape before anything is unpacked.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgpack
import numpy as np
from numpy.typing import NDArray

from fedcore.accumulator import FRACTION_BITS, RowScaled
from fedcore.durable import flush_folder
from fedcore.errors import MalformedMessage
from fedcore.types import Bits
from fedcore.wire.unpacking import Containers

__all__ = ["MAX_NUMBERS", "Record", "pack_record", "read_header", "read_records", "unpack_record", "write_records"]

MAX_NUMBERS: Final = 2**27
"""Numbers in a record, at most."""
MAX_EXPONENT: Final = 31
"""Beyond it a number would be outside the 63 bits of exact sums, whatever it is."""
# A tensor's name, and the first row of a block of it.
_MAX_NAME: Final = 540
_HEADER_BYTES: Final = 65_536
_READ_BYTES: Final = 65_536
_LEVEL: Final = 6
_SHUFFLED: Final = "zlib-shuffled"
_RAW: Final = "raw"


@dataclass(frozen=True)
class Record:
    """One named matrix of row-scaled integers; `difference` says that q is modulo 2**16 against an earlier version."""

    name: str
    part: RowScaled
    bits: Bits
    difference: bool = False


def _to_bytes(q: NDArray[np.int16], bits: Bits) -> bytes:
    if bits == 16:
        return q.astype("<i2").tobytes()
    if bits == 8:
        return q.astype(np.int8).tobytes()
    flat = (q.reshape(-1) & 0xF).astype(np.uint8)
    flat = np.append(flat, np.uint8(0)) if len(flat) % 2 else flat
    return (flat[0::2] | (flat[1::2] << 4)).tobytes()


def _from_bytes(data: bytes, count: int, bits: Bits) -> NDArray[np.int16]:
    if bits == 16:
        return np.frombuffer(data, "<i2").astype(np.int16)
    if bits == 8:
        return np.frombuffer(data, np.int8).astype(np.int16)
    packed = np.frombuffer(data, np.uint8)
    nibbles = np.empty(2 * len(packed), np.int16)
    nibbles[0::2] = packed & 0xF
    nibbles[1::2] = packed >> 4
    # Sign extension of four bits.
    return np.asarray(((nibbles[:count] ^ 8) - 8), np.int16)


def _size_bytes(count: int, bits: Bits) -> int:
    return -(-count * bits // 8)


def pack_record(record: Record, level: int = _LEVEL) -> dict[str, Any]:
    """A record as a msgpack map. Compressed without loss where that is smaller."""
    raw = _to_bytes(record.part.q, record.bits)
    # High and low bytes apart: the high bytes of small 16-bit numbers compress to almost nothing.
    shuffled = np.frombuffer(raw, np.uint8).reshape(-1, 2).T.tobytes() if record.bits == 16 else raw
    packed = zlib.compress(shuffled, level)
    coding, data = (_SHUFFLED, packed) if len(packed) < len(raw) else (_RAW, raw)
    rows, columns = record.part.q.shape
    return {
        "name": record.name,
        "rows": rows,
        "columns": columns,
        "bits": record.bits,
        "difference": record.difference,
        "coding": coding,
        "exponent": zlib.compress(record.part.exponent.tobytes(), 6),
        "data": data,
    }


def _inflate(data: bytes, size_bytes: int, place: str) -> bytes:
    engine = zlib.decompressobj()
    try:
        out = engine.decompress(data, size_bytes)
    except zlib.error as error:
        raise MalformedMessage(f"compressed data is damaged: {error}", place=place) from None
    if len(out) != size_bytes or engine.unconsumed_tail or engine.unused_data or not engine.eof:
        raise MalformedMessage(f"compressed data does not hold {size_bytes} bytes", place=place)
    return out


def unpack_record(raw: Any, largest: int = MAX_NUMBERS) -> Record:
    """A msgpack map as a record; every size is checked before anything is allocated.

    Args:
        raw: What msgpack gave.
        largest: Numbers that the record may have.

    Raises:
        MalformedMessage: Anything but a record, or a larger one.
    """
    try:
        name, rows, columns, bits = raw["name"], raw["rows"], raw["columns"], raw["bits"]
        coding, exponent, data, difference = raw["coding"], raw["exponent"], raw["data"], raw["difference"]
    except (KeyError, TypeError):
        raise MalformedMessage("not a record") from None
    # By exact type: True is an int to isinstance, and 8.0 equals 8.
    typed = all(type(x) is int for x in (rows, columns, bits)) and all(type(x) is bytes for x in (exponent, data))
    if not (typed and type(name) is str and type(coding) is str and type(difference) is bool and bits in (4, 8, 16)):
        raise MalformedMessage("a record has fields of the wrong type")
    if not 0 < len(name) <= _MAX_NAME:
        raise MalformedMessage(f"a record's name has {len(name)} characters")
    if not (rows > 0 and columns > 0 and rows * columns <= largest):
        raise MalformedMessage(f"a record of {rows} x {columns} is outside the limits", place=name)
    count = rows * columns
    size_bytes = _size_bytes(count, bits)
    if coding == _SHUFFLED:
        data = _inflate(data, size_bytes, name)
        if bits == 16:
            data = np.frombuffer(data, np.uint8).reshape(2, -1).T.tobytes()
    elif coding != _RAW:
        raise MalformedMessage("unknown coding", place=name)
    if len(data) != size_bytes:
        raise MalformedMessage(f"{len(data)} bytes of numbers where {size_bytes} belong", place=name)
    exponents = np.frombuffer(_inflate(exponent, rows, name), np.int8)
    q = _from_bytes(data, count, bits).reshape(rows, columns)
    if (exponents < -FRACTION_BITS).any() or (exponents > MAX_EXPONENT).any():
        raise MalformedMessage(f"an exponent is outside {-FRACTION_BITS} to {MAX_EXPONENT}", place=name)
    if not difference and (q == -(2 ** (bits - 1))).any():
        raise MalformedMessage("a number is outside the symmetric range", place=name)
    return Record(name, RowScaled(q, exponents), bits, difference)


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
    """

    def __init__(self, file: BinaryIO, place: str, largest: int) -> None:
        # 16 bits a number where they are not packed; exponents are fewer than numbers, and grow by a little when they do not compress.
        bytes_each = 2 * largest + 1024
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
        """Bytes read."""
        return int(self._unpacker.tell())


_SMALL: Final[dict[str, Any]] = {"raw": False, "strict_map_key": True, "max_map_len": 16, "max_str_len": 4 * _MAX_NAME, "max_ext_len": 0}


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
    count = Containers(8)
    unpacker = msgpack.Unpacker(
        None, read_size=_READ_BYTES, max_bin_len=0, max_array_len=1024, object_hook=count, list_hook=count, **_SMALL
    )
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


def read_records(path: Path, *, largest: int = MAX_NUMBERS) -> Iterator[Record]:
    """The records of a file, one at a time; the end marker is checked.

    Args:
        path: The file.
        largest: Numbers that the largest record may have. Pass what the reader expects: a few compressed bytes can claim a hundred million.

    Raises:
        MalformedMessage: The file is cut short, damaged, holds a larger record, or more than it says.
    """
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        _, start = _header(file, path.name)
        file.seek(start)
        objects = _Objects(file, path.name, min(largest, MAX_NUMBERS))
        count = 0
        while "end" not in (item := objects.next()):
            yield unpack_record(item, min(largest, MAX_NUMBERS))
            count += 1
        if item != {"end": count}:
            raise MalformedMessage(f"{count} records, and an end marker that does not say so", place=path.name)
        if start + objects.tell() != size_bytes:
            raise MalformedMessage("there is more behind the end marker", place=path.name)
