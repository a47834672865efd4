# SPDX-License-Identifier: Apache-2.0
"""Record files: how accumulators and states lie on disk and cross the wire.

A file is a sequence of msgpack objects: one header (a map with `format`), then one map per record, then an end marker with
the number of records, so that a file cut short is noticed. Readers hold one record at a time. Numbers are little-endian.
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
from fedcore.errors import MalformedMessage
from fedcore.types import Bits

__all__ = ["Record", "pack_record", "read_header", "read_records", "unpack_record", "write_records"]

MAX_RECORD_BYTES: Final = 256 * 2**20
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


def pack_record(record: Record) -> dict[str, Any]:
    """A record as a msgpack map. Compressed without loss where that is smaller."""
    raw = _to_bytes(record.part.q, record.bits)
    # High and low bytes apart: the high bytes of small 16-bit numbers compress to almost nothing.
    shuffled = np.frombuffer(raw, np.uint8).reshape(-1, 2).T.tobytes() if record.bits == 16 else raw
    packed = zlib.compress(shuffled, 6)
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
    if len(out) != size_bytes or engine.unconsumed_tail or not engine.eof:
        raise MalformedMessage(f"compressed data does not hold {size_bytes} bytes", place=place)
    return out


def unpack_record(raw: Any) -> Record:
    """A msgpack map as a record; every size is checked before anything is allocated.

    Raises:
        MalformedMessage: Anything but a record.
    """
    try:
        name, rows, columns, bits = raw["name"], raw["rows"], raw["columns"], raw["bits"]
        coding, exponent, data, difference = raw["coding"], raw["exponent"], raw["data"], raw["difference"]
    except (KeyError, TypeError):
        raise MalformedMessage("not a record") from None
    typed = all(isinstance(x, int) for x in (rows, columns)) and all(isinstance(x, bytes) for x in (exponent, data))
    if not (isinstance(name, str) and typed and isinstance(difference, bool) and bits in (4, 8, 16)):
        raise MalformedMessage("a record has fields of the wrong type")
    if not (rows > 0 and columns > 0 and rows * columns * 2 <= MAX_RECORD_BYTES):
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
    if (exponents < -FRACTION_BITS).any():
        raise MalformedMessage("an exponent is below the fixed point", place=name)
    if not difference and (q == -(2 ** (bits - 1))).any():
        raise MalformedMessage("a number is outside the symmetric range", place=name)
    return Record(name, RowScaled(q, exponents), bits, difference)


def write_records(path: Path, header: dict[str, Any], records: Iterable[Record]) -> None:
    """Write a record file beside `path`, flush it to the disk and rename it there: it exists whole or not at all."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(msgpack.packb(header))
        count = 0
        for record in records:
            file.write(msgpack.packb(pack_record(record)))
            count += 1
        file.write(msgpack.packb({"end": count}))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _unpacker(file: BinaryIO) -> msgpack.Unpacker:
    return msgpack.Unpacker(file, raw=False, strict_map_key=True, max_buffer_size=MAX_RECORD_BYTES, read_size=65_536)


def _next(unpacker: msgpack.Unpacker, place: str) -> dict[str, Any]:
    try:
        item = unpacker.unpack()
    except (msgpack.OutOfData, msgpack.UnpackException, ValueError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedMessage(f"the file is cut short or damaged: {error}", place=place) from None
    if not isinstance(item, dict):
        raise MalformedMessage("the file holds something that is not a map", place=place)
    return item


def read_header(path: Path, expected_format: str) -> dict[str, Any]:
    """The header of a record file.

    Raises:
        MalformedMessage: Not a record file of that format.
    """
    with path.open("rb") as file:
        header = _next(_unpacker(file), path.name)
    if header.get("format") != expected_format:
        raise MalformedMessage(f"not a file of format {expected_format!r}", place=path.name)
    return header


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file, one at a time; the end marker is checked.

    Raises:
        MalformedMessage: The file is cut short, damaged, or holds more than it says.
    """
    with path.open("rb") as file:
        unpacker = _unpacker(file)
        _next(unpacker, path.name)
        count = 0
        while True:
            item = _next(unpacker, path.name)
            if "end" in item:
                break
            yield unpack_record(item)
            count += 1
        if item["end"] != count or unpacker.tell() != path.stat().st_size:
            raise MalformedMessage(f"{count} records where the end marker says {item['end']}", place=path.name)
