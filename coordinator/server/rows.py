# SPDX-License-Identifier: Apache-2.0
"""What a server tells of each of its runs: a row for lists and the page, from the queue and from what the run's process
writes."""

from __future__ import annotations

from pathlib import Path

import msgspec

from coordinator.reports.nodes import node_rows
from coordinator.server.queueing import Entry
from coordinator.store.folder import RunFolder
from coordinator.store.viewfile import Seen, read_view

__all__ = ["Needs", "NodeRow", "Rows", "RunRow", "row_of"]

_MOST_REMEMBERED = 500


class RunRow(msgspec.Struct, frozen=True, kw_only=True):
    """A run at a server. Field names stay."""

    run: str
    state: str
    by: str
    submitted_at: float
    since: float
    words: str
    """Why it is as it is; what it waits for."""
    method: str = ""
    phase: str = ""
    round: int = 0
    rounds_done: int = 0
    rounds: int = 0
    accuracy: float | None = None
    digest: str = ""
    nodes_online: int = 0
    nodes: int = 0
    attention: int = 0
    """Nodes that somebody should look at."""


class NodeRow(msgspec.Struct, frozen=True, kw_only=True):
    """A node of the fleet, for lists. Field names stay."""

    node: str
    online: bool
    run: str
    able: tuple[str, ...]
    """Runs that it would take part in."""
    declined: dict[str, str]
    """Why not, by run."""
    software: str
    release: str = ""
    """The version that the server wants it to run; empty where it wants none."""


class Needs(msgspec.Struct, frozen=True):
    """How many nodes a run's rounds need."""

    min_nodes: int = 1
    quorum: int = 1
    rounds: int = 0


def row_of(entry: Entry, needs: Needs, seen: Seen | None, members: frozenset[str] = frozenset()) -> RunRow:
    """A run's row.

    Args:
        entry: What the queue says.
        needs: What its job says.
        seen: What its process wrote last; None where none has.
        members: Nodes that take part now: one that went to another run is not missing here. Empty where nobody says.
    """
    first = RunRow(
        run=entry.run,
        state=entry.state,
        by=entry.by,
        submitted_at=entry.submitted_at,
        since=entry.since,
        words=entry.words,
        rounds=needs.rounds,
    )
    if seen is None:
        return first
    view = seen.view
    if members and entry.state == "running":
        view.nodes = {name: node for name, node in view.nodes.items() if name in members}
    online = sum(node.online for node in view.nodes.values())
    measured = [row.accuracy for row in view.rows if row.accuracy is not None]
    works = entry.state == "running" and not seen.ended
    return msgspec.structs.replace(
        first,
        words=entry.words or (_waits_for(view.phase, online, needs) if works else ""),
        method=view.method,
        phase=view.phase if works else "",
        round=view.round,
        rounds_done=len(view.rows),
        rounds=view.total_rounds,
        accuracy=measured[-1] if measured else None,
        digest=view.digest,
        nodes_online=online if works else 0,
        nodes=len(view.nodes),
        attention=len(node_rows(view, attention_only=True)) if works else 0,
    )


def _waits_for(phase: str, online: int, needs: Needs) -> str:
    if phase == "waiting" and online < needs.min_nodes:
        return f"waits for nodes: {online} of {needs.min_nodes} are there"
    if phase not in ("preparing", "finished") and online < needs.quorum:
        return f"out of quorum: {online} of {needs.quorum} nodes are there"
    return ""


class Rows:
    """Rows, each made anew only when something under it has changed.

    Args:
        runs: The folder of runs.
    """

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._needs: dict[str, Needs] = {}
        self._made: dict[str, tuple[object, RunRow]] = {}

    def row(self, entry: Entry, members: frozenset[str] = frozenset()) -> RunRow:
        """The row of an entry.

        Args:
            entry: In the queue.
            members: Nodes that take part now.
        """
        path = RunFolder(self._runs / entry.run).view
        try:
            stamp = path.stat()
            key: object = entry, members, stamp.st_mtime_ns, stamp.st_size
        except OSError:
            key = entry, members, None
        if entry.run in self._made and self._made[entry.run][0] == key:
            return self._made[entry.run][1]
        if len(self._made) > _MOST_REMEMBERED:
            self._made.clear()
        found = row_of(entry, self._needs_of(entry.run), read_view(path), members)
        self._made[entry.run] = key, found
        return found

    def _needs_of(self, run: str) -> Needs:
        if run not in self._needs:
            try:
                data = RunFolder(self._runs / run).job.read_bytes()
                self._needs[run] = msgspec.json.decode(data, type=_Brief).round
            except (OSError, msgspec.DecodeError):
                return Needs()
        return self._needs[run]


class _Brief(msgspec.Struct, frozen=True):
    round: Needs = Needs()
