# SPDX-License-Identifier: Apache-2.0
"""A run in its own terminal: a live table where there is a terminal, a line an event where there is none."""

from __future__ import annotations

import json
import os
import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from coordinator.store.folder import RunFolder
from coordinator.store.ledger import RoundRow
from coordinator.store.view import EventView, NodeView, RunView
from coordinator.terminal.console import bar, make_console
from fedcore.errors import FedkrsoError
from fedcore.system.logs import Level, Line, LogFormat, LogWriter

__all__ = ["Progress", "Story"]

_BAR = 16
_MOST_NAMES = 12
# Somebody may have to do something; all else is only told.
_WARNINGS = {"refused", "declined", "link", "digest", "disk", "clipped", "capped", "revoked"}


class Story:
    """What is new in a view since the view before, as lines of the log.

    Example:
        >>> story = Story()
        >>> view = RunView("t", "fedkrso", 6, security="encrypted", nodes={"a": NodeView("a", online=True)})
        >>> [line.event for line in story.lines(view)]
        ['security', 'node_online']
        >>> story.lines(view)
        []
    """

    def __init__(self) -> None:
        self._seen: tuple[object, ...] = ()
        self._security = ""
        self._online: dict[str, bool] = {}
        self._opened: tuple[object, ...] = ()
        self._accepted: dict[int, set[str]] = {}
        self._rows: dict[int, RoundRow] = {}
        self._last_event: EventView | None = None
        self._paused = False

    def lines(self, view: RunView) -> list[Line]:
        """Take a view; what is new in it, in order."""
        # Most of what changes are numbers of nodes at work, hundreds of times a second in a large run: no line is about
        # them.
        online = [node.online for node in view.nodes.values()]
        states = view.phase, view.round, view.round_opened_at, view.paused, view.security
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
                lines.append(
                    Line(f"node {node.node} is {state}", event=f"node_{state}", round=view.round, node=node.node)
                )
        return lines

    def _published(self, view: RunView) -> list[Line]:
        lines: list[Line] = []
        for row in view.rows:
            if self._rows.get(row.round) == row or (row.accuracy is None and view.phase == "closing"):
                continue
            if row.round in self._accepted:
                # The update that closes a round is in no view of the open round.
                lines += self._updates(row.round, row.participants)
            self._rows[row.round] = row
            measured = "published" if row.accuracy is None else f"accuracy {row.accuracy:.3f}"
            megabytes = f"{row.uplink_bytes / 1e6:.2f} MB up, {row.downlink_bytes / 1e6:.2f} MB down"
            lines.append(
                Line(
                    f"round {row.round}: {measured}, train loss {row.train_loss:.3f}, {megabytes}, {row.seconds:.1f} s",
                    event="round_published" if row.accuracy is None else "round_evaluated",
                    round=row.round,
                    accuracy=row.accuracy,
                    loss=row.loss,
                    train_loss=row.train_loss,
                    updates=len(row.participants),
                    uplink_bytes=row.uplink_bytes,
                    downlink_bytes=row.downlink_bytes,
                    seconds=round(row.seconds, 3),
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


class Progress:
    """Shows a run's view as it changes, and what it came to; use it as a context manager.

    Args:
        run: The run's name.
        form: Of the log; None for a live page where there is a terminal, and text where there is none.
        as_json: The log in JSON, and the summary as its last line.
    """

    def __init__(self, run: str, form: LogFormat | None, *, as_json: bool) -> None:
        self._console, self._story, self._as_json = make_console(), Story(), as_json
        self._form: LogFormat | None = "json" if as_json else form
        if self._form is None and not self._console.is_terminal:
            self._form = "text"
        self._log = None if self._form is None else LogWriter(sys.stdout, self._form, run=run)
        self._live = Live(console=self._console, refresh_per_second=4) if self._log is None else None
        self._drawn_at = 0.0

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        if self._log is not None and self._form == "json" and isinstance(error, FedkrsoError):
            # Whoever collects the standard output alone learns the end too.
            self._log.say(Line(error.one_line(), event="failed", level="error", exit_code=error.exit_code))

    def show(self, view: RunView) -> None:
        """The view changed."""
        if self._log is not None:
            for line in self._story.lines(view):
                self._log.say(line)
        elif self._live is not None and time.monotonic() - self._drawn_at > 0.2:
            self._drawn_at = time.monotonic()
            self._live.update(self._page(view))

    def ended(self, summary: dict[str, Any], files: RunFolder) -> None:
        """The run has ended; `coordinator.reports.summary.summary_of` says with what."""
        if self._log is None or self._form == "text":
            self._table(summary)
            self._console.print(f"summary: {files.summary}{os.linesep}report:  {files.report}", soft_wrap=True)
            return
        final, rounds = summary["final"], summary["rounds"]
        sent = {key: sum(row[key] for row in rounds) for key in ("uplink_bytes", "downlink_bytes")}
        words = f"finished after {len(rounds)} rounds; summary: {files.summary}; report: {files.report}"
        numbers = {
            "accuracy": final["accuracy"],
            "digest": final["digest"],
            "rounds": len(rounds),
            "nodes": len(summary["nodes"]),
        }
        self._log.say(Line(words, event="run_finished", round=len(rounds), **numbers, **sent))
        if self._as_json:
            self._console.file.write(json.dumps(summary) + "\n")

    def _table(self, summary: dict[str, Any]) -> None:
        table = Table(title=f"run {summary['run']}", title_justify="left")
        for column in ("round", "nodes", "accuracy", "loss", "up MB", "down MB", "seconds"):
            table.add_column(column, justify="right")
        for row in summary["rounds"]:
            accuracy = "–" if row["accuracy"] is None else f"{row['accuracy']:.3f}"
            megabytes = [f"{row[key] / 1e6:.2f}" for key in ("uplink_bytes", "downlink_bytes")]
            table.add_row(
                str(row["round"]),
                str(len(row["participants"])),
                accuracy,
                f"{row['loss']:.3f}",
                *megabytes,
                f"{row['seconds']:.1f}",
            )
        self._console.print(table)
        same = sum(node["digest"] == summary["final"]["digest"] for node in summary["nodes"].values())
        self._console.print(
            f"digest {summary['final']['digest'][:16]}, the same on {same} of {len(summary['nodes'])} nodes"
        )
        for name, node in summary["nodes"].items():
            peak, budget = node["peak_bytes"] / 2**20, node["budget_bytes"] / 2**20
            agent = node["agent_peak_rss_bytes"] / 1e6
            self._console.print(f"  {name}: peak {peak:.0f} of {budget:.0f} MiB, agent {agent:.1f} MB")

    def _page(self, view: RunView) -> Group:
        head = (
            f"{view.run}  {view.method}  round {min(view.round, view.total_rounds)}/{view.total_rounds}  {view.phase}"
        )
        lines: list[Any] = [Text(head, style="bold")]
        lines.append(Text(view.security, style="yellow" if "INSECURE" in view.security else "dim"))
        nodes = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("node", "state", "step", "loss", "memory against budget", "version"):
            nodes.add_column(column)
        for node in sorted(view.nodes.values(), key=lambda n: n.node):
            nodes.add_row(*_node_cells(node, ascii_only=self._console.options.ascii_only))
        lines.append(nodes)
        for row in view.rows[-6:]:
            accuracy = "evaluating" if row.accuracy is None else f"accuracy {row.accuracy:.3f}"
            megabytes = f"{row.uplink_bytes / 1e6:.1f} MB up, {row.downlink_bytes / 1e6:.1f} MB down"
            lines.append(
                Text(
                    f"round {row.round}: {accuracy}, train loss {row.train_loss:.3f}, {megabytes}, {row.seconds:.0f} s"
                )
            )
        lines += [Text(event.line(), style="dim") for event in view.events[-3:]]
        return Group(*lines)


def _names(names: tuple[str, ...]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:_MOST_NAMES])} and {more} more"


def _node_cells(node: NodeView, *, ascii_only: bool) -> tuple[str, ...]:
    used = node.agent_rss_bytes + (node.worker_bytes or 0)
    share = used / node.budget_bytes if node.budget_bytes else 0.0
    memory = f"{bar(share, _BAR, ascii_only=ascii_only)} {used / 2**20:.0f}/{node.budget_bytes / 2**20:.0f} MiB"
    state = node.trouble or node.state if node.online else f"offline ({node.state})"
    loss = "" if node.loss is None else f"{node.loss:.3f}"
    return node.node, state, f"{node.step}/{node.steps}" if node.steps else "", loss, memory, str(max(node.version, 0))
