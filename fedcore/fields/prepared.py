# SPDX-License-Identifier: Apache-2.0
"""Types that msgspec has looked into.

It looks into a type when it first decodes one, which crashes the process if two threads do that at once. And what it
finds then stays: unions that are built from registries (`fedcore.registry`) must not be looked into before a program
had time to register its own."""

from __future__ import annotations

import threading
from typing import Any, Final, TypeVar

import msgspec

__all__ = ["prepared"]

K = TypeVar("K")
_LOCK: Final = threading.RLock()
_SEEN: Final[set[Any]] = set()


def prepared(kind: K) -> K:
    """The type itself, once msgspec has looked into it; one thread at a time does that, the others wait.

    Example:
        >>> msgspec.msgpack.decode(bytes([1]), type=prepared(int))
        1
    """
    if kind not in _SEEN:
        with _LOCK:
            msgspec.msgpack.Decoder(kind)
            _SEEN.add(kind)
    return kind
