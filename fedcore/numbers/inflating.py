# SPDX-License-Identifier: Apache-2.0
"""Numbers that travel are deflated (zlib, RFC 1950): how they are, and how they are read again.

What deflates best here looks for next to no repetitions: integers of a trained matrix have none but runs of zeros, and
a code for "so many bytes from so far back" takes its place among the codes of the bytes. So streams are made with
`Z_RLE`, which is also five to twenty times sooner done. Of pairs of 4 bits some come again, and what is sought is
little: the smaller of two streams travels.

Inflating is half of the time in which a round's updates become a sum. The package `isal` (Intel's ISA-L, extra
`coordinator`) reads the same streams to the same bytes in half of zlib's time; where it is not installed, zlib does."""

from __future__ import annotations

import zlib
from typing import Any, Final

from fedcore.errors import MalformedMessage
from fedcore.fields.unpacking import inflated

try:
    from isal import isal_zlib
except ImportError:
    _ENGINE: Any = zlib
else:
    _ENGINE = isal_zlib

__all__ = ["deflate", "inflate"]

_PAIRS: Final = (zlib.Z_RLE, zlib.Z_FILTERED)
# Of a large tensor two streams at once are memory that nobody planned for.
_MOST_TRIED_BYTES: Final = 2**20


def deflate(raw: bytes, level: int, *, pairs: bool = False) -> bytes:
    """A zlib stream.

    Args:
        raw: What it holds.
        level: 1 is fast, 9 small.
        pairs: Two numbers lie in each byte.

    Example:
        >>> inflate(deflate(bytes(1000), 6), 1000, "l") == bytes(1000)
        True
    """
    several = pairs and len(raw) <= _MOST_TRIED_BYTES
    return min((_made(raw, level, strategy) for strategy in (_PAIRS if several else _PAIRS[:1])), key=len)


def _made(raw: bytes, level: int, strategy: int) -> bytes:
    engine = zlib.compressobj(level, strategy=strategy)
    return engine.compress(raw) + engine.flush()


def inflate(data: bytes, size_bytes: int, place: str) -> bytes:
    """What a zlib stream holds that must hold so many bytes; no more are made.

    Raises:
        MalformedMessage: It is damaged, or holds another number of bytes.
    """
    try:
        out = inflated(data, size_bytes, _ENGINE.decompressobj)
    except (zlib.error, _ENGINE.error) as error:
        raise MalformedMessage(f"compressed data is damaged: {error}", place=place) from None
    if out is None or len(out) != size_bytes:
        raise MalformedMessage(f"compressed data does not hold {size_bytes} bytes", place=place)
    return out
