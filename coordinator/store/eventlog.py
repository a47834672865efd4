# SPDX-License-Identifier: Apache-2.0
"""The event log: who did what, for the operator, and never more of it than an operator can read.

A node (or whoever pretends to be one) can send thousands of bad messages a second; each line of the log is flushed to
the disk. So a line that was told within the last minute is counted and told again with its count; and of a kind a node
has a few different lines a minute, whatever it writes into them: the others are counted too."""

from __future__ import annotations

from collections import OrderedDict

from coordinator.store.ledger import Ledger
from coordinator.store.view import EventView
from fedcore.system.clocks import Clocks

__all__ = ["EventLog"]

_QUIET_SECONDS = 60.0
_MOST_REMEMBERED = 1000
_MOST_LINES = 30


class EventLog:
    """Writes events to the ledger.

    Args:
        ledger: Where they are kept.
        clocks: When it was, for people, and how long ago that is.
    """

    def __init__(self, ledger: Ledger, clocks: Clocks) -> None:
        self._ledger, self._clocks = ledger, clocks
        self._told: OrderedDict[tuple[str, str, int, str], tuple[float, int]] = OrderedDict()
        # By kind and node: when its minute began, lines in it, and lines left out.
        self._lines: OrderedDict[tuple[str, str], tuple[float, int, int]] = OrderedDict()

    def note(self, kind: str, node: str, server_round: int, text: str) -> EventView | None:
        """Keep an event; what to show of it, or None while it only repeats."""
        now = self._clocks.steady()
        key = (kind, node, server_round, text)
        at, again = self._told.pop(key, (float("-inf"), 0))
        if now - at < _QUIET_SECONDS:
            self._told[key] = at, again + 1
            return None
        left_out = self._left_out((kind, node), now)
        if left_out is None:
            return None
        self._told[key] = now, 0
        if len(self._told) > _MOST_REMEMBERED:
            self._told.popitem(last=False)
        text = f"{text} ({again} times more since)" if again else text
        text = f"{text} ({left_out} other lines like this left out)" if left_out else text
        wall = self._clocks.wall()
        self._ledger.note(wall, kind, node, text, server_round)
        return EventView(wall, kind, node, server_round, text)

    def _left_out(self, key: tuple[str, str], now: float) -> int | None:
        """Lines of this kind that were left out since the last one; None if this one is to be left out too."""
        since, lines, left_out = self._lines.pop(key, (now, 0, 0))
        if now - since >= _QUIET_SECONDS:
            since, lines = now, 0
        full = lines >= _MOST_LINES
        self._lines[key] = (since, lines, left_out + 1) if full else (since, lines + 1, 0)
        if len(self._lines) > _MOST_REMEMBERED:
            self._lines.popitem(last=False)
        return None if full else left_out
