# SPDX-License-Identifier: Apache-2.0
"""What nodes miss of published objects, sent again: one request at a time, by turns, and for no node more than half of
the time. A small message asks for many large ones, so whoever asks all the time must not keep the coordinator from its
round."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Repairs"]


class Repairs:
    """The requests that wait, the last one of each node.

    Args:
        send: Sends the chunks that a node asks for: (node, SHA-256, chunk numbers).
        steady: Seconds of a clock that never goes back.
    """

    def __init__(self, send: Callable[[str, str, tuple[int, ...]], None], steady: Callable[[], float]) -> None:
        self._send, self._steady = send, steady
        self._wanted: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._rests_until: dict[str, float] = {}

    @property
    def pending(self) -> bool:
        """Whether a request waits."""
        return bool(self._wanted)

    def want(self, node: str, sha256: str, indices: tuple[int, ...]) -> None:
        """A node asks; what it asked before and has not got is forgotten."""
        self._wanted[node] = sha256, indices

    def serve(self) -> None:
        """Answer the request that has waited longest, of a node whose turn it is."""
        now = self._steady()
        node = next((name for name in self._wanted if self._rests_until.get(name, now) <= now), None)
        if node is None:
            return
        self._send(node, *self._wanted.pop(node))
        after = self._steady()
        self._rests_until[node] = after + (after - now)
