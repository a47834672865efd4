# SPDX-License-Identifier: Apache-2.0
"""What is to go out to all, in its order, as the transport takes it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fedcore.transport.base import Message, Transport

__all__ = ["Outbox"]

# A flush must not take longer than a turn of the loop may.
_MOST_AT_ONCE = 32
_STUCK_SECONDS = 2.0


@dataclass
class _Step:
    kind: str
    messages: Iterator[Message | None]
    head: Message | None = None


class Outbox:
    """Steps, each of them messages that are made as they go out; a message that is None says that the step waits for
    something else.

    Args:
        transport: Takes messages, some at a time.
        drawn: Told of each message once.

    Example:
        >>> from fedcore.transport.memory import MemoryBroker
        >>> outbox = Outbox(MemoryBroker().connect(), lambda message: None)
        >>> outbox.add("plan", iter([Message("t", b"first")])), outbox.add("plan", iter([Message("t", b"second")]))
        (None, None)
        >>> outbox.has("plan"), outbox.empty
        (True, False)
    """

    def __init__(self, transport: Transport, drawn: Callable[[Message], None]) -> None:
        self._transport, self._drawn = transport, drawn
        self._steps: deque[_Step] = deque()
        self._moved_at = time.monotonic()

    def add(self, kind: str, messages: Iterator[Message | None]) -> None:
        """A step behind the others, in place of one of its kind; as much of all as the transport takes goes out."""
        self._steps = deque(step for step in self._steps if step.kind != kind)
        if not self._steps:
            self._moved_at = time.monotonic()
        self._steps.append(_Step(kind, messages))
        self.flush()

    def has(self, kind: str) -> bool:
        """Whether a step of a kind is not out yet."""
        return any(step.kind == kind for step in self._steps)

    @property
    def empty(self) -> bool:
        """Whether all of it is out."""
        return not self._steps

    @property
    def stuck(self) -> bool:
        """Whether the transport has taken nothing of it for a while."""
        waits = bool(self._steps) and self._steps[0].head is not None
        return waits and time.monotonic() - self._moved_at > _STUCK_SECONDS

    def flush(self) -> bool:
        """Send what the transport takes, but not without end; False where more can go out soon."""
        for _ in range(_MOST_AT_ONCE):
            if not self._steps:
                return True
            step = self._steps[0]
            if step.head is None:
                try:
                    step.head = next(step.messages)
                except StopIteration:
                    self._steps.popleft()
                    continue
                self._moved_at = time.monotonic()
                if step.head is None:
                    return True
                self._drawn(step.head)
            if not self._transport.publish(step.head):
                return False
            step.head, self._moved_at = None, time.monotonic()
        return not self._steps
