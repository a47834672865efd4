# SPDX-License-Identifier: Apache-2.0
"""Before the coordinator's queue: what one node may have waiting in it, and how often it may speak.

An honest node has a window of chunks under way and a few small messages; what is lost here it sends again. A node that
goes on regardless is struck off for a while: nothing of it is even looked at, and the operator is told its name."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from fedcore.transport.base import Received
from fedcore.wire.messages import Topics

__all__ = ["Gate"]

_MOST_WAITING, _MOST_WAITING_BYTES = 64, 16 * 2**20
# Messages that are no chunks: a second, and at once.
_PER_SECOND, _AT_ONCE = 100.0, 400.0
# So many dropped within so long is no accident.
_MOST_DROPPED, _COUNTED_SECONDS = 500, 10.0
_FIRST_STRIKE_SECONDS, _LONGEST_STRIKE_SECONDS = 60.0, 3600.0
_MOST_NAMES = 20_000


@dataclass
class _Node:
    waiting: int = 0
    waiting_bytes: int = 0
    spare: float = _AT_ONCE
    spare_at: float = 0.0
    dropped: int = 0
    dropped_since: float = float("-inf")
    struck_until: float = float("-inf")
    strike_seconds: float = _FIRST_STRIKE_SECONDS


class Gate:
    """Lets messages of nodes into a queue, or drops them. Called in the transport's thread and in the loop's.

    Args:
        topics: Of the run.
        steady: Seconds of a clock that never goes back.
    """

    def __init__(self, topics: Topics, steady: Callable[[], float] = time.monotonic) -> None:
        self._topics, self._steady = topics, steady
        self._nodes: dict[str, _Node] = {}
        self._struck: list[tuple[str, str]] = []
        self._lock = threading.Lock()

    def admits(self, message: Received) -> bool:
        """Whether a message may wait in the queue; then `taken` must follow.

        Args:
            message: As it came.
        """
        name = self._topics.node_of(message.topic)
        if name is None:
            return True
        if message.retained and not message.topic.endswith("/status"):
            # Nodes retain nothing but their status: the rest would come again with every start.
            return False
        with self._lock:
            if name not in self._nodes and len(self._nodes) >= _MOST_NAMES:
                return False
            return self._admits(name, self._nodes.setdefault(name, _Node()), message)

    def taken(self, message: Received) -> None:
        """A message has left the queue."""
        name = self._topics.node_of(message.topic)
        with self._lock:
            node = self._nodes.get(name) if name is not None else None
            if node is not None:
                node.waiting -= 1
                node.waiting_bytes -= len(message.payload)

    def struck(self) -> list[tuple[str, str]]:
        """Nodes that were struck off since the last call, and what to tell of each."""
        with self._lock:
            struck, self._struck = self._struck, []
        return struck

    def _admits(self, name: str, node: _Node, message: Received) -> bool:
        now, size = self._steady(), len(message.payload)
        if now < node.struck_until:
            return False
        node.spare = min(_AT_ONCE, node.spare + _PER_SECOND * (now - node.spare_at))
        node.spare_at = now
        chunk = message.topic.endswith("/chunk")
        room = node.waiting < _MOST_WAITING and (node.waiting == 0 or node.waiting_bytes + size <= _MOST_WAITING_BYTES)
        if not room or (not chunk and node.spare < 1):
            self._drop(name, node, now)
            return False
        node.spare -= not chunk
        node.waiting += 1
        node.waiting_bytes += size
        return True

    def _drop(self, name: str, node: _Node, now: float) -> None:
        if now - node.dropped_since > _COUNTED_SECONDS:
            node.dropped, node.dropped_since = 0, now
        node.dropped += 1
        if node.dropped < _MOST_DROPPED:
            return
        seconds = node.strike_seconds
        node.struck_until, node.dropped = now + seconds, 0
        node.strike_seconds = min(2 * seconds, _LONGEST_STRIKE_SECONDS)
        self._struck.append((name, f"sends far more than a node has to say: not heard for {seconds:.0f} s"))
