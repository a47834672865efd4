# SPDX-License-Identifier: Apache-2.0
"""What an operator wants to know of each node, in words: the same as on the dashboard's page. Pure functions of a
view."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from coordinator.store.view import NodeView, RunView

__all__ = ["SORTS", "TIGHT_SHARE", "NodeRow", "natural", "node_rows"]

TIGHT_SHARE: Final = 0.9
"""A node above this share of its budget needs attention."""
_STATES = {"full": "disk full", "": "silent"}


@dataclass(frozen=True)
class NodeRow:
    """What an operator wants to know of a node, in words."""

    view: NodeView
    activity: str
    """What it does."""
    digest: str
    """`same`, `differs`, `2 behind`, ...: whether it holds the published model."""
    notes: tuple[str, ...]
    """Why somebody should look at it; empty where nobody need."""

    @property
    def used_bytes(self) -> int:
        """Agent and worker together: what the budget is for."""
        return self.view.agent_rss_bytes + (self.view.worker_bytes or 0)

    @property
    def share(self) -> float | None:
        """Part of its memory budget that a node uses; None while the budget is not known."""
        return self.used_bytes / self.view.budget_bytes if self.view.budget_bytes else None

    @property
    def celsius(self) -> float | None:
        """Temperature of the node's hottest sensor, in degrees Celsius."""
        return None if self.view.readings is None else self.view.readings.hottest_celsius

    @property
    def watts(self) -> float | None:
        """What the device draws."""
        return None if self.view.readings is None else self.view.readings.power_watts


# The first is the default. What is asked for by a number comes with the largest first: that is what one looks for.
SORTS: Final[dict[str, Callable[[NodeRow], object]]] = {
    "name": lambda row: natural(row.view.node),
    "state": lambda row: (row.view.online, not row.notes, row.activity, natural(row.view.node)),
    "memory": lambda row: (-(row.share or 0.0), natural(row.view.node)),
    "temperature": lambda row: (-(row.celsius or -273.0), natural(row.view.node)),
    "power": lambda row: (-(row.watts or -1.0), natural(row.view.node)),
    "seen": lambda row: (row.view.last_seen_at or 0.0, natural(row.view.node)),
}


def node_rows(view: RunView, *, sort: str = "name", attention_only: bool = False) -> list[NodeRow]:
    """The nodes of a run, in order."""
    rows = [
        NodeRow(node, _activity(node, view), _digest(node, view), _notes(node, view)) for node in view.nodes.values()
    ]
    kept = [row for row in rows if row.notes or not attention_only]
    return sorted(kept, key=SORTS[sort])  # type: ignore[arg-type]


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts node-2 before node-10.

    Example:
        >>> sorted(["node-10", "node-2"], key=natural)
        ['node-2', 'node-10']
    """
    return [(int(part), "") if part.isdecimal() and len(part) < 18 else (-1, part) for part in re.split(r"(\d+)", name)]


def _activity(node: NodeView, run: RunView) -> str:
    word = _STATES.get(node.state, node.state)
    if not node.online:
        return f"offline ({word})" if node.state not in ("", "lost") else "offline"
    if node.node in run.excluded:
        return "excluded"
    return f"{word} {node.step}/{node.steps}" if node.state == "training" and node.steps else word


def _digest(node: NodeView, run: RunView) -> str:
    if node.state == "refused":
        # Of another version of the program: there is nothing to compare.
        return ""
    if node.trouble:
        return "differs"
    newest = run.rows[-1].round if run.rows else 0
    if node.version < 0 or newest == 0:
        return ""
    if node.version < newest:
        return f"{newest - node.version} behind"
    # Another digest at the same version: it has merged already, which its next message proves.
    return "same" if node.digest and node.digest == run.digest else ""


def _notes(node: NodeView, run: RunView) -> tuple[str, ...]:
    if node.node in run.excluded:
        return ()
    notes = [node.trouble] if node.trouble else []
    if not node.online:
        left = run.phase == "finished" or node.state == "finished"
        return tuple(notes if left else [*notes, node.reason or "offline"])
    share = NodeRow(node, "", "", ()).share
    if share is not None and share > TIGHT_SHARE:
        notes.append(f"{share:.0%} of the budget")
    if node.reason:
        notes.append(node.reason)
    if node.readings is not None and node.readings.throttled:
        why = node.readings.throttle_reason
        notes.append(f"throttled: {why}" if why else "throttled")
    return tuple(notes)
