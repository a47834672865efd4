# SPDX-License-Identifier: Apache-2.0
"""The kinds of numbers that a record may hold: a codec each, in the registry `fedcore.registry.CODECS`.

| kind | bits | what travels | at the coordinator |
|---|---|---|---|
| `integers` | 4, 8, 16 | q of each number, and one exponent for each row | q * 2**(e + 32): exactly what was sent |
| `floats` | 16, 32 | bfloat16 or float32 of each number | rounded to a multiple of 2**-32, half to even |
| `sparse` | 4, 8, 16 | q of what is not zero, where that is, and the exponents | as `integers`, zero elsewhere |

A float32 of 2**-9 or more is a multiple of 2**-32 already; smaller ones are off by 2**-33 at most. Once rounded, all of
them are integers, so their sums are as exact, and as independent of order, as those of the others.

Where a number lies is told by how many come between it and the one before: in base 255, with 255 for "so many and
more". zlib gives these bytes codes by how frequent they are (looking for repetitions made them longer). That is near
what can be had: of random places at densities of 10, 1 and 0.1 % a place takes 4.7, 8.1 and 12.9 bits, and 4.7, 8.1 and
11.4 is the least.

Bytes come from elsewhere: every size is checked before anything of that size is made.
"""

from __future__ import annotations

import zlib
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcore.errors import MalformedMessage
from fedcore.numbers.accumulator import FRACTION_BITS, Floats, MatrixEntry, RowScaled, quantise_rows, require_range
from fedcore.numbers.coding import Coding, Kind, Width, most_index_bytes
from fedcore.numbers.inflating import deflate, inflate
from fedcore.registry import CODECS, register_payload_codec
from fedcore.weights.checkpoint import from_float32, to_float32

__all__ = ["MAX_EXPONENT", "Codec", "codec_of", "encoded"]

MAX_EXPONENT: Final = 31
"""Beyond it a number would be outside the 63 bits of exact sums, whatever it is."""
_SHUFFLED: Final = "zlib-shuffled"
_COLUMNS: Final = "zlib-columns"
_RAW: Final = "raw"
_STEP: Final = 255
# Rows that become columns at a time: all columns of so many stay in a processor's cache, and each has some in a line.
_TURNED: Final = 256


class Codec(Protocol):
    """One kind. What it packs of an entry must not be longer than `Coding.most_bytes` says: a node keeps room for
    that."""

    widths: tuple[Width, ...]

    def encode(self, values: NDArray[np.float32], coding: Coding, place: str) -> MatrixEntry:
        """Round a matrix to what travels.

        Raises:
            UpdateRefused: A value is not finite, or so large that training has diverged.
        """
        ...

    def pack(self, part: MatrixEntry, bits: Width, level: int) -> dict[str, Any]:
        """What a record has of it beside name, shape and bits; compressed without loss where that is smaller."""
        ...

    def unpack(self, raw: Any, shape: tuple[int, int], bits: Width, place: str) -> MatrixEntry:
        """A matrix entry from what `pack` gave.

        Raises:
            MalformedMessage: Anything else.
        """
        ...


def codec_of(kind: Kind) -> Codec:
    """The codec of a kind of numbers.

    Raises:
        ConfigError: No such kind.
    """
    found: Codec = CODECS.get(kind, place="payload codec")
    return found


def encoded(values: NDArray[np.float32], coding: Coding, place: str) -> MatrixEntry:
    """A matrix as it travels; see `Codec.encode`."""
    return codec_of(coding.kind).encode(values, coding, place)


@register_payload_codec("integers")
class _Integers:
    widths: tuple[Width, ...] = (4, 8, 16)

    def encode(self, values: NDArray[np.float32], coding: Coding, place: str) -> MatrixEntry:
        return quantise_rows(values, _integer_bits(coding.bits), place=place)

    def pack(self, part: MatrixEntry, bits: Width, level: int) -> dict[str, Any]:
        assert isinstance(part, RowScaled)
        if bits == 16:
            packed = _by_columns(part.q.astype(np.int16, copy=False), level)
        else:
            packed = _deflated(_to_bytes(part.q, bits), bits, level)
        return {
            "coding": packed["coding"],
            "exponent": zlib.compress(part.exponent.tobytes(), 6),
            "data": packed["data"],
        }

    def unpack(self, raw: Any, shape: tuple[int, int], bits: Width, place: str) -> MatrixEntry:
        exponents = _exponents(raw, shape[0], place)
        if bits == 16 and raw.get("coding") == _COLUMNS:
            return RowScaled(_from_columns(raw, shape, place), exponents)
        count = shape[0] * shape[1]
        data = _inflated(raw, -(-count * bits // 8), bits, place)
        return RowScaled(_from_bytes(data, count, bits).reshape(shape), exponents)


@register_payload_codec("floats")
class _Floats:
    widths: tuple[Width, ...] = (16, 32)

    def encode(self, values: NDArray[np.float32], coding: Coding, place: str) -> MatrixEntry:
        require_range(np.abs(values).max(initial=0), place)
        return Floats(to_float32(from_float32(values, _FLOATS[coding.bits]), _FLOATS[coding.bits]))

    def pack(self, part: MatrixEntry, bits: Width, level: int) -> dict[str, Any]:
        stored = from_float32(part.values(), _FLOATS[bits])
        return _deflated(stored.astype(_STORED[bits], copy=False).tobytes(), bits, level)

    def unpack(self, raw: Any, shape: tuple[int, int], bits: Width, place: str) -> MatrixEntry:
        data = _inflated(raw, shape[0] * shape[1] * bits // 8, bits, place)
        values = to_float32(np.frombuffer(data, _STORED[bits]).reshape(shape), _FLOATS[bits])
        if not np.isfinite(values).all():
            raise MalformedMessage("a number is not finite", place=place)
        return Floats(values)


_FLOATS: Final[dict[int, str]] = {16: "BF16", 32: "F32"}
_STORED: Final[dict[int, str]] = {16: "<u2", 32: "<f4"}


@register_payload_codec("sparse")
class _Sparse:
    widths: tuple[Width, ...] = (4, 8, 16)

    def encode(self, values: NDArray[np.float32], coding: Coding, place: str) -> MatrixEntry:
        return quantise_rows(_largest(values, coding.kept(values.size)), _integer_bits(coding.bits), place=place)

    def pack(self, part: MatrixEntry, bits: Width, level: int) -> dict[str, Any]:
        assert isinstance(part, RowScaled)
        flat = part.q.reshape(-1)
        places = np.flatnonzero(flat)
        index = _gaps(places)
        return {
            "exponent": zlib.compress(part.exponent.tobytes(), 6),
            "count": len(places),
            "index_bytes": len(index),
            "index": _by_frequency(index, level),
            **_deflated(_to_bytes(flat[places], bits), bits, level),
        }

    def unpack(self, raw: Any, shape: tuple[int, int], bits: Width, place: str) -> MatrixEntry:
        numbers, count, index_bytes, index = (
            shape[0] * shape[1],
            raw.get("count"),
            raw.get("index_bytes"),
            raw.get("index"),
        )
        if not (type(count) is int and type(index_bytes) is int and type(index) is bytes):
            raise MalformedMessage("a record has fields of the wrong type", place=place)
        if not (0 <= count <= numbers and count <= index_bytes <= most_index_bytes(count, numbers)):
            raise MalformedMessage(
                f"{count} numbers of {numbers}, told by {index_bytes} bytes, are outside the limits", place=place
            )
        index = inflate(index, index_bytes, place)
        places = _places(index)
        if index.endswith(b"\xff") or len(places) != count or (count and places[-1] >= numbers):
            raise MalformedMessage(
                f"the places of {len(places)} numbers where {count} of {numbers} belong", place=place
            )
        data = _inflated(raw, -(-count * bits // 8), bits, place)
        exponents = _exponents(raw, shape[0], place)
        q = _from_bytes(data, count, bits)
        flat = np.zeros(numbers, q.dtype)
        flat[places] = q
        return RowScaled(flat.reshape(shape), exponents)


def _integer_bits(bits: Width) -> Any:
    assert bits != 32, "no integers of 32 bits travel"
    return bits


def _largest(values: NDArray[np.float32], kept: int) -> NDArray[np.float32]:
    """The numbers of largest size, zero elsewhere; of equal ones those that come first."""
    size = np.abs(values).reshape(-1)
    if kept >= len(size):
        return values
    limit = np.partition(size, len(size) - kept)[len(size) - kept]
    # What is not finite is kept, so that it is found.
    taken = (size > limit) | ~np.isfinite(size)
    taken[np.flatnonzero(size == limit)[: max(0, kept - int(taken.sum()))]] = True
    return np.where(taken.reshape(values.shape), values, np.float32(0))


def _gaps(places: NDArray[np.intp]) -> bytes:
    """Ascending places as bytes: for each how many come between it and the one before, in base 255."""
    between = np.diff(places, prepend=-1) - 1
    whole, rest = np.divmod(between, _STEP)
    out = np.full(int(whole.sum()) + len(places), _STEP, np.uint8)
    out[np.cumsum(whole + 1) - 1] = rest
    return out.tobytes()


def _places(index: bytes) -> NDArray[np.intp]:
    """What `_gaps` was made from; ascending whatever the bytes are."""
    steps = np.frombuffer(index, np.uint8)
    ends = np.flatnonzero(steps < _STEP)
    return np.asarray(np.cumsum(steps, dtype=np.int64)[ends] + np.arange(len(ends)), np.intp)


def _to_bytes(q: NDArray[np.int16] | NDArray[np.int8], bits: Width) -> bytes:
    if bits == 16:
        return q.astype("<i2").tobytes()
    if bits == 8:
        return q.astype(np.int8).tobytes()
    flat = (q.reshape(-1) & 0xF).astype(np.uint8)
    flat = np.append(flat, np.uint8(0)) if len(flat) % 2 else flat
    return (flat[0::2] | (flat[1::2] << 4)).tobytes()


def _from_bytes(data: bytes, count: int, bits: Width) -> NDArray[np.int16] | NDArray[np.int8]:
    """As narrow as they travelled, but for halves of a byte."""
    if bits == 16:
        return np.frombuffer(data, "<i2").astype(np.int16)
    if bits == 8:
        return np.frombuffer(data, np.int8)
    # Each byte's lower half, then its higher one, as a byte of its own: both at once, in words of 16 bits.
    words = np.frombuffer(data, np.uint8).astype("<u2")
    words |= words << 4
    words &= 0x0F0F
    halves = words.view(np.int8)
    # Sign extension of four bits.
    halves ^= 8
    halves -= 8
    return halves[:count]


def _by_columns(q: NDArray[np.int16], level: int) -> dict[str, Any]:
    """Numbers of 16 bits, most of whose columns may be zero and whose values small: a subspace that no one trained,
    fewer `published_bits`.

    Column after column, with the sign in the lowest bit, first all high bytes and then all low ones. Both have codes of
    their own, and only runs are looked for, since nothing else repeats."""
    zigzag = ((q << 1) ^ (q >> 15)).T.astype("<u2")
    planes = np.ascontiguousarray(zigzag).view(np.uint8).reshape(-1, 2).T
    engine = zlib.compressobj(level, strategy=zlib.Z_RLE)
    packed = (
        engine.compress(planes[1].tobytes())
        + engine.flush(zlib.Z_SYNC_FLUSH)
        + engine.compress(planes[0].tobytes())
        + engine.flush()
    )
    return (
        {"coding": _COLUMNS, "data": packed} if len(packed) < q.nbytes else {"coding": _RAW, "data": _to_bytes(q, 16)}
    )


def _from_columns(raw: Any, shape: tuple[int, int], place: str) -> NDArray[np.int16]:
    """What `_by_columns` was made from."""
    if type(data := raw.get("data")) is not bytes:
        raise MalformedMessage("a record has fields of the wrong type", place=place)
    rows, columns = shape
    planes = np.frombuffer(inflate(data, 2 * rows * columns, place), np.uint8).reshape(2, columns, rows)
    q = np.empty(shape, np.int16)
    for first in range(0, rows, _TURNED):
        some = slice(first, first + _TURNED)
        size = planes[0, :, some].astype(np.uint16)
        size <<= 8
        size |= planes[1, :, some]
        signed = (size & 1).view(np.int16)
        size >>= 1
        np.negative(signed, out=signed)
        signed ^= size.view(np.int16)
        q[some] = signed.T
    return q


def _deflated(raw: bytes, bits: Width, level: int) -> dict[str, Any]:
    # High and low bytes apart: the high bytes of small 16-bit numbers compress to almost nothing.
    shuffled = np.frombuffer(raw, np.uint8).reshape(-1, bits // 8).T.tobytes() if bits > 8 else raw
    packed = deflate(shuffled, level, pairs=bits == 4)
    coding, data = (_SHUFFLED, packed) if len(packed) < len(raw) else (_RAW, raw)
    return {"coding": coding, "data": data}


def _by_frequency(raw: bytes, level: int) -> bytes:
    engine = zlib.compressobj(level, strategy=zlib.Z_HUFFMAN_ONLY)
    return engine.compress(raw) + engine.flush()


def _inflated(raw: Any, size_bytes: int, bits: Width, place: str) -> bytes:
    coding, data = raw.get("coding"), raw.get("data")
    if not isinstance(coding, str) or not isinstance(data, bytes):
        raise MalformedMessage("a record has fields of the wrong type", place=place)
    numbers: bytes = data
    if coding == _SHUFFLED:
        numbers = inflate(data, size_bytes, place)
        if bits > 8:
            numbers = np.frombuffer(numbers, np.uint8).reshape(bits // 8, -1).T.tobytes()
    elif coding != _RAW:
        raise MalformedMessage("unknown coding", place=place)
    if len(numbers) != size_bytes:
        raise MalformedMessage(f"{len(numbers)} bytes of numbers where {size_bytes} belong", place=place)
    return numbers


def _exponents(raw: Any, rows: int, place: str) -> NDArray[np.int8]:
    if type(exponent := raw.get("exponent")) is not bytes:
        raise MalformedMessage("a record has fields of the wrong type", place=place)
    exponents = np.frombuffer(inflate(exponent, rows, place), np.int8)
    if exponents.min() < -FRACTION_BITS or exponents.max() > MAX_EXPONENT:
        raise MalformedMessage(f"an exponent is outside {-FRACTION_BITS} to {MAX_EXPONENT}", place=place)
    return exponents
