# SPDX-License-Identifier: Apache-2.0
"""What an operator sees of a run: nodes, rounds and the last events, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field

from coordinator.ledger import RoundRow
from fedcore.memoryplan import Parts

__all__ = ["NodeView", "RunView"]


@dataclass
class NodeView:
    """What is known of a node."""

    node: str
    online: bool = False
    state: str = ""
    device: str = ""
    version: int = -1
    digest: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    budget_bytes: int = 0
    worker_bytes: int | None = None
    peak_bytes: int = 0
    agent_peak_rss_bytes: int = 0
    enclosure: str = ""
    parts: Parts | None = None
    reason: str = ""
    trouble: str = ""
    """Set while the node holds another model than the run published."""
    security: str = ""


@dataclass
class RunView:
    """The run now."""

    run: str
    method: str
    total_rounds: int
    phase: str = "waiting"
    round: int = 0
    cohort: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    security: str = ""
    """How the link and the messages are protected."""
    digest: str = ""
    rows: list[RoundRow] = field(default_factory=list)
    nodes: dict[str, NodeView] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
