# SPDX-License-Identifier: Apache-2.0
"""A run in the terminal: a live table where there is a terminal, a line per round and event where there is none."""

from __future__ import annotations

import json
import time
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from coordinator.view import NodeView, RunView

__all__ = ["Progress"]

_BAR = 16


class Progress:
    """Shows a run's view as it changes; use it as a context manager.

    Args:
        as_json: One JSON object a line instead.
        console: Where to write.
    """

    def __init__(self, *, as_json: bool, console: Console | None = None) -> None:
        self._as_json = as_json
        self._console = console or Console()
        self._live = Live(console=self._console, refresh_per_second=4) if self._console.is_terminal and not as_json else None
        self._told: set[tuple[object, ...]] = set()
        self._drawn_at = 0.0
        self._seen: tuple[object, ...] = ()

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, view: RunView) -> None:
        """The view changed."""
        if self._live is not None:
            if time.monotonic() - self._drawn_at > 0.2:
                self._drawn_at = time.monotonic()
                self._live.update(self._page(view))
            return
        # Most of what changes are numbers of nodes at work, hundreds of times a second in a large run: no line is about them.
        seen = (view.phase, view.round, view.accepted, view.rows, view.events, [node.online for node in view.nodes.values()])
        if seen == self._seen:
            return
        self._seen = seen
        for fact in self._facts(view):
            if fact not in self._told:
                self._told.add(fact)
                self._tell(fact)

    def summary(self, summary: dict[str, Any]) -> None:
        """The end of a run, for a person."""
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
        self._console.print(f"digest {summary['final']['digest'][:16]}, the same on {same} of {len(summary['nodes'])} nodes")
        for name, node in summary["nodes"].items():
            peak, budget = node["peak_bytes"] / 2**20, node["budget_bytes"] / 2**20
            agent = node["agent_peak_rss_bytes"] / 1e6
            self._console.print(f"  {name}: peak {peak:.0f} of {budget:.0f} MiB, agent {agent:.1f} MB")

    def _page(self, view: RunView) -> Group:
        head = f"{view.run}  {view.method}  round {min(view.round, view.total_rounds)}/{view.total_rounds}  {view.phase}"
        lines: list[Any] = [Text(head, style="bold")]
        lines.append(Text(view.security, style="yellow" if "INSECURE" in view.security else "dim"))
        nodes = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("node", "state", "step", "loss", "memory against budget", "version"):
            nodes.add_column(column)
        for node in sorted(view.nodes.values(), key=lambda n: n.node):
            nodes.add_row(*_node_cells(node))
        lines.append(nodes)
        for row in view.rows[-6:]:
            accuracy = "evaluating" if row.accuracy is None else f"accuracy {row.accuracy:.3f}"
            megabytes = f"{row.uplink_bytes / 1e6:.1f} MB up, {row.downlink_bytes / 1e6:.1f} MB down"
            lines.append(Text(f"round {row.round}: {accuracy}, train loss {row.train_loss:.3f}, {megabytes}, {row.seconds:.0f} s"))
        lines += [Text(event.line(), style="dim") for event in view.events[-3:]]
        return Group(*lines)

    def _facts(self, view: RunView) -> list[tuple[object, ...]]:
        facts: list[tuple[object, ...]] = [("security", view.security)]
        facts += [("node", n.node, "online" if n.online else "offline") for n in view.nodes.values()]
        if view.phase == "open":
            facts.append(("open", view.round, ", ".join(view.cohort)))
        facts += [("update", view.round, node) for node in view.accepted]
        facts += [
            ("round", r.round, r.accuracy, r.train_loss, r.uplink_bytes, r.downlink_bytes, r.seconds)
            for r in view.rows
            if r.accuracy is not None or view.phase != "closing"
        ]
        return facts + [("event", event.line()) for event in view.events]

    def _tell(self, fact: tuple[object, ...]) -> None:
        if self._as_json:
            self._console.print(json.dumps({"event": fact[0], "values": fact[1:]}), soft_wrap=True, highlight=False, markup=False)
            return
        match fact:
            case ("security", how):
                text = f"{how}"
            case ("node", node, state):
                text = f"node {node} is {state}"
            case ("open", server_round, cohort):
                text = f"round {server_round} is open for {cohort}"
            case ("update", server_round, node):
                text = f"round {server_round}: update of {node}"
            case ("round", server_round, accuracy, loss, up, down, seconds):
                measured = "evaluating" if accuracy is None else f"accuracy {accuracy:.3f}"
                text = (
                    f"round {server_round}: {measured}, train loss {loss:.3f}, "
                    f"{float(up) / 1e6:.2f} MB up, {float(down) / 1e6:.2f} MB down, {seconds:.1f} s"  # type: ignore[arg-type]
                )
            case _:
                text = str(fact[-1])
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)


def _node_cells(node: NodeView) -> tuple[str, ...]:
    used = (node.worker_bytes or 0) / node.budget_bytes if node.budget_bytes else 0.0
    filled = min(_BAR, round(_BAR * used))
    memory = f"{'█' * filled}{'░' * (_BAR - filled)} {(node.worker_bytes or 0) / 2**20:.0f}/{node.budget_bytes / 2**20:.0f} MiB"
    state = node.trouble or node.state if node.online else f"offline ({node.state})"
    loss = "" if node.loss is None else f"{node.loss:.3f}"
    return node.node, state, f"{node.step}/{node.steps}" if node.steps else "", loss, memory, str(max(node.version, 0))
