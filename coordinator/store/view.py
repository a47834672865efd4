# SPDX-License-Identifier: Apache-2.0
"""What an operator sees of a run: nodes, rounds and the last events, as plain values.

The coordinator's loop alone changes a view. Others get it encoded (`RunView.encoded`), so that no thread reads what
another writes."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from coordinator.store.ledger import RoundRow
from coordinator.store.rows import NodesMeasured
from coordinator.store.standing import Standing
from fedcore.device.memoryplan import MemoryComponents
from fedcore.device.readings import Readings

__all__ = ["EventView", "NodeView", "RunView", "round_title"]


@dataclass(frozen=True)
class EventView:
    """Something that happened, with its reason."""

    at: float
    """Unix seconds."""
    kind: str
    """`refused`, `declined`, `link`, `digest`, ...: what the ledger calls it."""
    node: str
    """Empty where it is about no node."""
    round: int
    text: str

    def line(self) -> str:
        """The event as one line for a terminal."""
        return f"{self.kind} {self.node}: {self.text}".replace(" :", ":")


@dataclass
class NodeView:
    """What is known of a node."""

    node: str
    online: bool = False
    state: str = ""
    device: str = ""
    software: str = ""
    route: str = ""
    last_seen_at: float | None = None
    """Unix seconds of its last message."""
    version: int = -1
    digest: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    budget_bytes: int = 0
    agent_rss_bytes: int = 0
    worker_bytes: int | None = None
    worker_anonymous_bytes: int | None = None
    accelerator_bytes: int | None = None
    available_bytes: int | None = None
    peak_bytes: int = 0
    agent_peak_rss_bytes: int = 0
    memory_group: str = ""
    components: MemoryComponents | None = None
    readings: Readings | None = None
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    reason: str = ""
    trouble: str = ""
    """Set while the node holds another model than the run published."""
    security: str = ""


@dataclass
class RunView:
    """The run now.

    Example:
        >>> view = RunView("t", "fedkrso", 6, events=[EventView(1.0, "refused", "a", 2, "late")])
        >>> RunView.decoded(view.encoded()) == view
        True
    """

    run: str
    method: str
    total_rounds: int
    phase: str = "waiting"
    round: int = 0
    written_at: float = 0.0
    """Unix seconds at which this view was encoded."""
    round_opened_at: float | None = None
    deadline_at: float | None = None
    """Unix seconds at which the open round ends, if it has its quorum."""
    paused: bool = False
    """No further round opens until somebody resumes."""
    excluded: tuple[str, ...] = ()
    """Nodes that an operator takes out of the cohort."""
    buffer_size: int = 0
    """Updates that end the open round, where rounds are buffered; 0: those of the whole cohort."""
    cohort: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    security: str = ""
    """How the link and the messages are protected."""
    digest: str = ""
    notes: tuple[str, ...] = ()
    """What a person should know of the model and of the coordinator's held-out rows, each a sentence."""
    phases: dict[int, str] = field(default_factory=dict)
    """What a round is for, of those that are none of the method's own."""
    rows: list[RoundRow] = field(default_factory=list)
    start: NodesMeasured | None = None
    """What nodes measured before anything was learned."""
    standing: Standing | None = None
    """Which round is the best, by what; None where nothing is measured."""
    cut_short: bool = False
    """Nothing better came for long enough, and a head from sums in a round of its own ends the run before its time."""
    nodes: dict[str, NodeView] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    """How many events of each kind there were since this coordinator started; the log tells repeated ones once."""
    events: list[EventView] = field(default_factory=list)
    """The last ones, oldest first; the ledger has all."""

    def title(self, server_round: int) -> str:
        """A round's number, with what it is for: `1 (head)`.

        Example:
            >>> view = RunView("t", "fedkrso", 6, phases={1: "head"})
            >>> view.title(1), view.title(2)
            ('1 (head)', '2')
        """
        return round_title(server_round, self.phases.get(server_round, ""))

    def encoded(self) -> bytes:
        """As JSON; `decoded` reads it."""
        return msgspec.json.encode(self)

    @staticmethod
    def decoded(data: bytes) -> RunView:
        """What `encoded` wrote.

        Raises:
            msgspec.DecodeError: It is something else.
        """
        return msgspec.json.decode(data, type=RunView)


def round_title(server_round: int, phase: str) -> str:
    """A round's number, with what it is for where that is not the method's own.

    Example:
        >>> round_title(1, "head"), round_title(2, "")
        ('1 (head)', '2')
    """
    return f"{server_round} ({phase})" if phase else str(server_round)
