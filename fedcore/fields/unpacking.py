# SPDX-License-Identifier: Apache-2.0
"""msgpack and deflated bytes from elsewhere, unpacked within limits.

msgpack's own limits are on single strings and lists. Two things are missing: a header may promise a list of millions
that is not there (the list is made first), and small lists nested in each other multiply what few bytes cost. So the
bytes are walked once without making anything, and lists and maps are counted while they are made."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgpack

from fedcore.errors import MalformedMessage

__all__ = ["Containers", "inflated", "unpack"]

_MAX_CONTAINERS: Final = 50_000
_MAX_LIST: Final = 100_000
_MAX_MAP: Final = 64
T = TypeVar("T")


class Containers:
    """A hook that lets `most` lists and maps be made, then raises ValueError."""

    def __init__(self, most: int) -> None:
        self._most = self._left = most

    def begin(self) -> None:
        """Another object begins: count anew."""
        self._left = self._most

    def __call__(self, made: T) -> T:
        """A list or map is complete."""
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"more than {self._most} lists and maps")
        return made


def unpack(data: bytes | memoryview, *, max_containers: int = _MAX_CONTAINERS, max_list: int = _MAX_LIST) -> Any:
    """One msgpack object that fills `data`.

    What it takes in memory is below 24 times `data`, plus 300 bytes for each list or map allowed.

    Raises:
        MalformedMessage: Anything else, or beyond the limits.

    Example:
        >>> unpack(bytes([0x92, 1, 2]))
        [1, 2]
    """
    size = max(1, len(data))
    sizes: dict[str, Any] = {
        "max_str_len": size,
        "max_bin_len": size,
        "max_array_len": max_list,
        "max_map_len": _MAX_MAP,
        "max_ext_len": 0,
    }
    count = Containers(max_containers)
    try:
        walk = msgpack.Unpacker(None, max_buffer_size=size, **sizes)
        walk.feed(data)
        walk.skip()
        return msgpack.unpackb(data, raw=False, strict_map_key=True, object_hook=count, list_hook=count, **sizes)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise MalformedMessage(f"not msgpack: {error}") from None


def inflated(data: bytes | memoryview, most_bytes: int, engine: Callable[[], Any] = zlib.decompressobj) -> bytes | None:
    """What a zlib stream that fills `data` holds; no more than so many bytes are made.

    Args:
        data: The stream.
        most_bytes: That it may hold.
        engine: Another one than zlib's, with its interface; of its errors those are raised.

    Returns:
        None where it holds more, is cut short, or has something behind it.

    Raises:
        zlib.error: It is damaged.

    Example:
        >>> inflated(zlib.compress(b"abc"), 3), inflated(zlib.compress(b"abc"), 2)
        (b'abc', None)
    """
    reader = engine()
    # A limit of 0 would be none.
    out: bytes = reader.decompress(data, most_bytes or 1)
    return out if reader.eof and not reader.unused_data else None
