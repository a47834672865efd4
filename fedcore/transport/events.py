# SPDX-License-Identifier: Apache-2.0
"""What waits between the threads that hear something and the loop that handles it."""

from __future__ import annotations

import queue
import threading
from typing import Generic, TypeVar

from fedcore.transport.base import Received

__all__ = ["EventQueue"]

T = TypeVar("T")


class EventQueue(Generic[T]):
    """A queue that lets whoever brings a message wait while messages of too many bytes wait to be handled.

    A transport's thread that waits reads no further from its socket, so a burst stays with the broker instead of in
    this process. Other events never wait, and a message waits only so long: a loop that stands still must not take the
    link's keep-alive with it.

    Args:
        most_bytes: Payloads that may wait together; one larger message waits alone.
        patience_seconds: How long `put` waits for room at most.

    Example:
        >>> events = EventQueue(most_bytes=1000)
        >>> events.put(Received("a", b"payload", False))
        >>> events.get(0.0).payload, events.empty()
        (b'payload', True)
    """

    def __init__(self, most_bytes: int, patience_seconds: float = 5.0) -> None:
        self._most_bytes, self._patience_seconds = most_bytes, patience_seconds
        self._events: queue.SimpleQueue[T] = queue.SimpleQueue()
        self._room = threading.Condition()
        self._waiting_bytes = 0

    def put(self, event: T) -> None:
        """Put an event behind the others; of a message, when there is room for it."""
        size = _payload_bytes(event)
        if size:
            with self._room:
                self._room.wait_for(lambda: self._fits(size), self._patience_seconds)
                self._waiting_bytes += size
        self._events.put(event)

    def get(self, timeout_seconds: float) -> T:
        """The next event.

        Raises:
            queue.Empty: None came in time.
        """
        event = self._events.get(timeout=timeout_seconds)
        size = _payload_bytes(event)
        if size:
            with self._room:
                self._waiting_bytes -= size
                self._room.notify()
        return event

    def empty(self) -> bool:
        """Whether nothing waits."""
        return self._events.empty()

    def _fits(self, size: int) -> bool:
        return self._waiting_bytes == 0 or self._waiting_bytes + size <= self._most_bytes


def _payload_bytes(event: object) -> int:
    return len(event.payload) if isinstance(event, Received) else 0
