# SPDX-License-Identifier: Apache-2.0
"""What happens in a run, as lines of the log: found by comparing each view with the one before."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from coordinator.reports.spread import spread_of
from coordinator.store.ledger import RoundRow
from coordinator.store.rows import NodesMeasured
from coordinator.store.view import EventView, RunView
from fedcore.system.logs import Level, Line

__all__ = ["Story"]

_MOST_NAMES = 12
# Somebody may have to do something; all else is only told.
_WARNINGS = {
    *("refused", "declined", "link", "digest", "disk", "clipped", "capped", "revoked"),
    *("below", "broker", "flood", "ledger", "node_refused", "other_run", "outlier"),
    *("restored", "rival", "silent", "version"),
}


class Story:
    """What is new in a view since the view before, as lines of the log.

    Example:
        >>> story, view = Story(), RunView("t", "fedkrso", 6, security="encrypted")
        >>> [line.event for line in story.lines(view)], story.lines(view)
        (['security'], [])
    """

    def __init__(self) -> None:
        self._seen: tuple[object, ...] = ()
        self._security = ""
        self._notes: tuple[str, ...] = ()
        self._online: dict[str, bool] = {}
        self._opened: tuple[object, ...] = ()
        self._accepted: dict[int, set[str]] = {}
        self._rows: dict[int, RoundRow] = {}
        self._nodes_measured: dict[int, NodesMeasured] = {}
        self._last_event: EventView | None = None
        self._paused = False

    def lines(self, view: RunView) -> list[Line]:
        """Take a view; what is new in it, in order."""
        # Most of what changes are numbers of nodes at work, hundreds of times a second in a large run: no line is about
        # them.
        online = [node.online for node in view.nodes.values()]
        states = view.phase, view.round, view.round_opened_at, view.paused, view.security, view.notes
        seen = (*states, view.cohort, view.accepted, view.rows, view.events, online)
        if seen == self._seen:
            return []
        self._seen = seen
        return [*self._state(view), *self._nodes(view), *self._published(view), *self._round(view), *self._events(view)]

    def _state(self, view: RunView) -> list[Line]:
        lines = []
        if view.security != self._security:
            self._security = view.security
            level: Level = "warning" if "INSECURE" in view.security else "info"
            lines.append(Line(view.security, event="security", level=level))
        lines += [Line(note, event="model_note") for note in view.notes if note not in self._notes]
        self._notes = view.notes
        if view.paused != self._paused:
            self._paused = view.paused
            words = "paused: no further round opens" if view.paused else "resumed: rounds open again"
            lines.append(Line(words, event="paused" if view.paused else "resumed", round=view.round))
        return lines

    def _nodes(self, view: RunView) -> list[Line]:
        lines = []
        for node in view.nodes.values():
            if self._online.get(node.node) != node.online:
                self._online[node.node] = node.online
                state = "online" if node.online else "offline"
                done = not node.online and node.state == "finished"
                words = f"node {node.node} is done" if done else f"node {node.node} is {state}"
                lines.append(Line(words, event=f"node_{state}", round=view.round, node=node.node))
        return lines

    def _published(self, view: RunView) -> list[Line]:
        new = [row for row in view.rows if self._rows.get(row.round) is not row]
        lines = self._measured(view, new)
        for row in new:
            if row.accuracy is None and view.phase == "closing":
                continue
            before = self._rows.get(row.round)
            self._rows[row.round] = row
            if before is not None and msgspec.structs.replace(before, nodes=row.nodes) == row:
                continue
            if row.round in self._accepted:
                # The update that closes a round is in no view of the open round.
                lines += self._updates(row.round, row.participants)
            measured = "published" if row.accuracy is None else f"accuracy {row.accuracy:.3f}{_metrics(row.metrics)}"
            megabytes = f"{row.uplink_bytes / 1e6:.2f} MB up, {row.downlink_bytes / 1e6:.2f} MB down"
            title, seconds = view.title(row.round), f"{row.seconds:.1f} s{_behind(row)}"
            lines.append(
                Line(
                    f"round {title}: {measured}, train loss {row.train_loss:.3f}, {megabytes}, {seconds}",
                    event="round_published" if row.accuracy is None else "round_evaluated",
                    round=row.round,
                    accuracy=row.accuracy,
                    loss=row.loss,
                    train_loss=row.train_loss,
                    updates=len(row.participants),
                    stale=len(row.stale),
                    uplink_bytes=row.uplink_bytes,
                    downlink_bytes=row.downlink_bytes,
                    seconds=round(row.seconds, 3),
                )
            )
        return lines

    def _measured(self, view: RunView, rows: list[RoundRow]) -> list[Line]:
        """What nodes measured of published states, each once."""
        lines: list[Line] = []
        for version, found in [(0, view.start), *((row.round, row.nodes) for row in rows)]:
            if found is None or self._nodes_measured.get(version) == found:
                continue
            self._nodes_measured[version] = found
            spread = spread_of(found)
            words = f"{spread.words}, {found.rows} held-out rows of {len(found.scores)} nodes"
            lines.append(
                Line(
                    f"version {version} on nodes: accuracy {found.accuracy:.3f} ({words}), loss {found.loss:.3f}"
                    f"{_metrics(found.metrics)}",
                    event="nodes_measured",
                    round=version,
                    accuracy=found.accuracy,
                    loss=found.loss,
                    rows=found.rows,
                    nodes=len(found.scores),
                    least_accuracy=spread.least,
                    median_accuracy=spread.median,
                )
            )
        return lines

    def _round(self, view: RunView) -> list[Line]:
        lines = []
        # A round that opens again, with the same nodes perhaps, has another opening.
        opened = view.round, view.cohort, view.round_opened_at
        if view.phase == "open" and opened != self._opened:
            self._opened = opened
            self._accepted = {number: nodes for number, nodes in self._accepted.items() if number == view.round}
            words = f"round {view.round} is open for {_names(view.cohort)}"
            seconds = (
                None
                if view.deadline_at is None or view.round_opened_at is None
                else view.deadline_at - view.round_opened_at
            )
            lines.append(
                Line(words, event="round_opened", round=view.round, invited=len(view.cohort), deadline_seconds=seconds)
            )
        return lines + self._updates(view.round, view.accepted)

    def _updates(self, server_round: int, nodes: tuple[str, ...]) -> list[Line]:
        told, lines = self._accepted.setdefault(server_round, set()), []
        for node in nodes:
            if node not in told:
                told.add(node)
                words = f"round {server_round}: update of {node}"
                lines.append(Line(words, event="update_accepted", round=server_round, node=node, accepted=len(told)))
        return lines

    def _events(self, view: RunView) -> list[Line]:
        new = view.events
        for place in range(len(new) - 1, -1, -1):
            if new[place] is self._last_event or new[place] == self._last_event:
                new = new[place + 1 :]
                break
        if new:
            self._last_event = new[-1]
        return [self._event(event) for event in new]

    @staticmethod
    def _event(event: EventView) -> Line:
        level: Level = "warning" if event.kind in _WARNINGS else "info"
        return Line(event.line(), event=event.kind, level=level, round=event.round, node=event.node, at=event.at)


def _behind(row: RoundRow) -> str:
    """Going on a line: how old updates were that began from earlier versions."""
    most = max((behind for behind, _ in row.stale.values()), default=0)
    return f", {len(row.stale)} of {len(row.participants)} updates up to {most} behind" if most else ""


def _metrics(metrics: Mapping[str, float]) -> str:
    """Going on a line."""
    return "".join(f", {name} {value:.3f}" for name, value in metrics.items())


def _names(names: tuple[str, ...]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:_MOST_NAMES])} and {more} more"
