# SPDX-License-Identifier: Apache-2.0
"""A run in its own terminal: a live table where there is a terminal, a line an event where there is none."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from coordinator.run.control import Commander
from coordinator.store.folder import RunFolder
from coordinator.store.view import NodeView, RunView, round_title
from coordinator.terminal.console import bar, make_console
from coordinator.terminal.story import Story
from fedcore.errors import FedkrsoError
from fedcore.system.logs import Line, LogFormat, LogWriter

__all__ = ["Progress"]

_BAR = 16


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

    def start(self, view: RunView, command: Commander, ledger: Path) -> None:
        """The run begins; there is nothing to ask it for."""

    def observe(self, view: RunView) -> None:
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
        on_nodes = any(row["on_nodes"] for row in summary["rounds"])
        for column in ("round", "nodes", "accuracy", *(("on nodes",) if on_nodes else ()), "loss"):
            table.add_column(column, justify="right")
        for column in ("up MB", "down MB", "seconds"):
            table.add_column(column, justify="right")
        for row in summary["rounds"]:
            accuracy = "–" if row["accuracy"] is None else f"{row['accuracy']:.3f}"
            megabytes = [f"{row[key] / 1e6:.2f}" for key in ("uplink_bytes", "downlink_bytes")]
            table.add_row(
                round_title(row["round"], row["phase"]),
                str(len(row["participants"])),
                accuracy,
                *((f"{row['on_nodes']['accuracy']:.3f}" if row["on_nodes"] else "–",) if on_nodes else ()),
                f"{row['loss']:.3f}",
                *megabytes,
                f"{row['seconds']:.1f}",
            )
        self._console.print(table)
        if summary["best"] is not None:
            best = summary["best"]
            self._console.print(f"best round {best['round']}: {best['by']} {best['value']:.3f}")
        same = sum(node["digest"] == summary["final"]["digest"] for node in summary["nodes"].values())
        self._console.print(
            f"digest {summary['final']['digest'][:16]}, the same on {same} of {len(summary['nodes'])} nodes"
        )
        for name, node in summary["nodes"].items():
            peak, budget = node["peak_bytes"] / 2**20, node["budget_bytes"] / 2**20
            agent = node["agent_peak_rss_bytes"] / 2**20
            self._console.print(f"  {name}: peak {peak:.0f} of {budget:.0f} MiB, agent {agent:.1f} MiB")

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
            numbers = f"{accuracy}, train loss {row.train_loss:.3f}, {megabytes}, {row.seconds:.0f} s"
            lines.append(Text(f"round {view.title(row.round)}: {numbers}"))
        lines += [Text(event.line(), style="dim") for event in view.events[-3:]]
        return Group(*lines)


def _node_cells(node: NodeView, *, ascii_only: bool) -> tuple[str, ...]:
    used = node.agent_rss_bytes + (node.worker_bytes or 0)
    share = used / node.budget_bytes if node.budget_bytes else 0.0
    memory = f"{bar(share, _BAR, ascii_only=ascii_only)} {used / 2**20:.0f}/{node.budget_bytes / 2**20:.0f} MiB"
    state = node.trouble or (node.state if node.online else f"offline ({node.state})")
    loss = "" if node.loss is None else f"{node.loss:.3f}"
    return node.node, state, f"{node.step}/{node.steps}" if node.steps else "", loss, memory, str(max(node.version, 0))
