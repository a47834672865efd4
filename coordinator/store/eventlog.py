# SPDX-License-Identifier: Apache-2.0
"""The event log: who did what, for the operator, and never more of it than an operator can read.

A node (or whoever pretends to be one) can send thousands of bad messages a second; each line of the log is flushed to
the disk. So a line that was told within the last minute is counted and told again with its count."""

from __future__ import annotations

from collections import OrderedDict

from coordinator.store.ledger import Ledger
from coordinator.store.view import EventView

__all__ = ["EventLog"]

_QUIET_SECONDS = 60.0
_MOST_REMEMBERED = 1000


class EventLog:
    """Writes events to the ledger.

    Args:
        ledger: Where they are kept.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._told: OrderedDict[tuple[str, str, int, str], tuple[float, int]] = OrderedDict()

    def note(self, now: float, kind: str, node: str, server_round: int, text: str) -> EventView | None:
        """Keep an event; what to show of it, or None while it only repeats."""
        key = (kind, node, server_round, text)
        at, again = self._told.pop(key, (float("-inf"), 0))
        if now - at < _QUIET_SECONDS:
            self._told[key] = at, again + 1
            return None
        self._told[key] = now, 0
        if len(self._told) > _MOST_REMEMBERED:
            self._told.popitem(last=False)
        text = f"{text} ({again} times more since)" if again else text
        self._ledger.note(now, kind, node, text, server_round)
        return EventView(now, kind, node, server_round, text)
