# SPDX-License-Identifier: Apache-2.0
"""A node's numbers over time, bounded however long a run lasts.

A track starts with a point a second. When it is full, neighbours are merged and its interval doubles, so that hours fit
into a few hundred points. Merging keeps the worst: the highest memory, temperature and power, the least memory left. A
peak stays a peak."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping
from types import MappingProxyType

from coordinator.store.view import NodeView, RunView

__all__ = ["COLUMNS", "History", "Track"]

_POINTS = 300
_FIRST_SECONDS = 1.0
# Names from the wire cost memory here: a run without keys believes anybody's.
_MOST_NODES = 2000
_NONE = math.nan


def _last(old: float, new: float) -> float:
    return old if new != new else new


def _highest(old: float, new: float) -> float:
    return new if old != old or new > old else old


def _least(old: float, new: float) -> float:
    return new if old != old or new < old else old


COLUMNS: Mapping[str, Callable[[float, float], float]] = MappingProxyType(
    {
        "agent_bytes": _highest,
        "worker_anonymous_bytes": _highest,
        "worker_file_bytes": _highest,
        "accelerator_bytes": _highest,
        "available_bytes": _least,
        "budget_bytes": _last,
        "hottest_celsius": _highest,
        "power_watts": _highest,
        "step": _last,
        "loss": _last,
    }
)
"""Names of what is kept beside the time, and how two neighbours become one."""


class Track:
    """One node's columns, of equal length; unknown is NaN.

    Args:
        points: The most points kept; even.
        interval_seconds: Between points at the start.
    """

    def __init__(self, points: int = _POINTS, interval_seconds: float = _FIRST_SECONDS) -> None:
        self._points, self.interval_seconds = points, interval_seconds
        self.at = array("d")
        self._columns = {name: array("d") for name in COLUMNS}

    def add(self, at: float, values: Mapping[str, float | None]) -> None:
        """Keep values of a moment; within the interval of the last point they go into it.

        Args:
            at: Unix seconds, not before the last.
            values: By column; what is not there or None is unknown.
        """
        if self.at and at - self.at[-1] < self.interval_seconds:
            for name, column in self._columns.items():
                column[-1] = COLUMNS[name](column[-1], _number(values.get(name)))
            return
        if len(self.at) >= self._points:
            self._halve()
            self.add(at, values)
            return
        self.at.append(at)
        for name, column in self._columns.items():
            column.append(_number(values.get(name)))

    def plain(self) -> dict[str, list[float | int | None]]:
        """All columns, ready for JSON: whole numbers as such, None where unknown."""
        return {
            "at": list(self.at),
            **{name: [_plain(value) for value in column] for name, column in self._columns.items()},
        }

    def _halve(self) -> None:
        self.interval_seconds *= 2
        self.at = self.at[::2]
        for name, column in self._columns.items():
            merge = COLUMNS[name]
            pairs = zip(column[::2], [*column[1::2], _NONE][: len(self.at)], strict=True)
            self._columns[name] = array("d", [old if new != new else merge(old, new) for old, new in pairs])


class History:
    """Tracks of all nodes; belongs to one thread."""

    def __init__(self) -> None:
        self._tracks: dict[str, Track] = {}
        self._seen: dict[str, tuple[bool, float | None]] = {}

    def add(self, view: RunView) -> None:
        """Take what is new of every node. A node that went offline leaves a gap."""
        for node in view.nodes.values():
            seen = node.online, node.last_seen_at
            if self._seen.get(node.node) == seen or (not node.online and node.node not in self._seen):
                continue
            if node.node not in self._tracks and len(self._tracks) >= _MOST_NODES:
                continue
            self._seen[node.node] = seen
            track = self._tracks.setdefault(node.node, Track())
            track.add(max(view.written_at, track.at[-1] if track.at else 0.0), _values(node) if node.online else {})

    def plain(self, node: str) -> dict[str, list[float | int | None]]:
        """A node's columns; empty ones for a node without a history."""
        return (self._tracks.get(node) or Track()).plain()


def _values(node: NodeView) -> dict[str, float | None]:
    files = None
    if node.worker_bytes is not None and node.worker_anonymous_bytes is not None:
        files = max(0, node.worker_bytes - node.worker_anonymous_bytes)
    available = node.available_bytes
    if available is None and node.readings is not None:
        available = node.readings.memory_available_bytes
    return {
        "agent_bytes": node.agent_rss_bytes or None,
        # A node that does not tell its parts tells the sum.
        "worker_anonymous_bytes": node.worker_bytes
        if node.worker_anonymous_bytes is None
        else node.worker_anonymous_bytes,
        "worker_file_bytes": files,
        "accelerator_bytes": node.accelerator_bytes,
        "available_bytes": available,
        "budget_bytes": node.budget_bytes or None,
        "hottest_celsius": None if node.readings is None else node.readings.hottest_celsius,
        "power_watts": None if node.readings is None else node.readings.power_watts,
        "step": node.step if node.steps else None,
        "loss": node.loss,
    }


def _number(value: float | None) -> float:
    return _NONE if value is None else float(value)


def _plain(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() else value
