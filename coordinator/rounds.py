# SPDX-License-Identifier: Apache-2.0
"""The run as a state machine: events in, actions out; no I/O and no clock.

    waiting ──> open ──> closing ──> open (next round) ... ──> finishing ──> finished
                 └─ deadline without quorum: open again, same round, new cohort and deadline

Every event is kept in `story`, which an illegal transition shows.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from coordinator.cohort import choose_cohort
from coordinator.job import RoundSection
from fedcore.errors import RunError

__all__ = [
    "Action",
    "CloseRound",
    "Declined",
    "DigestReported",
    "EndRun",
    "Event",
    "FinishRun",
    "NodeOffline",
    "NodeOnline",
    "OpenRound",
    "RoundMachine",
    "RoundPublished",
    "Tick",
    "UpdateAccepted",
]

Phase = Literal["waiting", "open", "closing", "finishing", "finished"]
TRANSITIONS: frozenset[tuple[Phase, Phase]] = frozenset(
    {
        ("waiting", "open"),
        ("waiting", "finishing"),
        ("open", "open"),
        ("open", "closing"),
        ("closing", "open"),
        ("closing", "finishing"),
        ("closing", "waiting"),
        ("finishing", "finished"),
    }
)


@dataclass(frozen=True)
class NodeOnline:
    """A node said that it is there."""

    node: str


@dataclass(frozen=True)
class NodeOffline:
    """A node left, or its last will says so."""

    node: str
    left: bool = False
    """It said so itself, and will not be waited for; otherwise its connection was lost, and it may come back."""


@dataclass(frozen=True)
class Declined:
    """A participant will not send an update this round."""

    node: str
    round: int


@dataclass(frozen=True)
class UpdateAccepted:
    """A participant's update is checked, on disk and in the ledger."""

    node: str
    round: int


@dataclass(frozen=True)
class RoundPublished:
    """The round's outcome is out."""

    round: int


@dataclass(frozen=True)
class DigestReported:
    """A node holds a version, with this model digest."""

    node: str
    version: int
    digest: str


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


Event = NodeOnline | NodeOffline | Declined | UpdateAccepted | RoundPublished | DigestReported | Tick


@dataclass(frozen=True)
class OpenRound:
    """Announce a round to a cohort."""

    round: int
    cohort: tuple[str, ...]
    deadline_at: float


@dataclass(frozen=True)
class CloseRound:
    """Aggregate these participants' updates and publish."""

    round: int
    participants: tuple[str, ...]


@dataclass(frozen=True)
class FinishRun:
    """Announce that nothing is trained any more; nodes take the last outcome and report."""


@dataclass(frozen=True)
class EndRun:
    """Write the summary and stop."""


Action = OpenRound | CloseRound | FinishRun | EndRun


@dataclass
class RoundMachine:
    """The coordinator's life.

    Args:
        settings: The job's `[round]`.
        cohort_seed: For drawing cohorts.
        published: The last round whose outcome is out (0 at the start; more when a run is resumed).
        seen: Nodes that took part before (a resumed run waits for their last word too).
    """

    settings: RoundSection
    cohort_seed: int
    published: int = 0
    phase: Phase = "waiting"
    online: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    cohort: tuple[str, ...] = ()
    accepted: set[str] = field(default_factory=set)
    declined: set[str] = field(default_factory=set)
    reported: dict[str, tuple[int, str]] = field(default_factory=dict)
    deadline_at: float = 0.0
    story: deque[tuple[float, Event]] = field(default_factory=lambda: deque(maxlen=200))

    @property
    def round(self) -> int:
        """The round that is open, or that opens next."""
        return self.published + 1

    def resume_open(self, cohort: tuple[str, ...], accepted: set[str], deadline_at: float) -> None:
        """Continue an open round that the ledger remembers."""
        self._go("open")
        self.cohort, self.accepted, self.deadline_at = cohort, set(accepted), deadline_at
        self.seen.update(cohort)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event; `now` in Unix seconds. Returns what to do, in order."""
        self.story.append((now, event))
        match event:
            case NodeOnline(node):
                self.online.add(node)
                self.seen.add(node)
            case NodeOffline(node, left):
                self.online.discard(node)
                if left:
                    self.seen.discard(node)
                if left and self.phase == "open" and node in self.cohort and node not in self.accepted:
                    self.declined.add(node)
            case UpdateAccepted(node, server_round) if self._concerns(node, server_round):
                self.accepted.add(node)
                self.declined.discard(node)
            case Declined(node, server_round) if self._concerns(node, server_round) and node not in self.accepted:
                self.declined.add(node)
            case DigestReported(node, version, digest):
                self.reported[node] = (version, digest)
            case RoundPublished(server_round) if server_round == self.round and self.phase == "closing":
                return self._published(now)
        return self._advance(now)

    def check(self) -> None:
        """Invariants that hold between events; tests call it after each."""
        assert self.accepted <= set(self.cohort), self.story
        assert self.phase != "open" or self.cohort, self.story
        assert 0 <= self.published <= self.settings.rounds, self.story
        assert not self.accepted & self.declined, self.story

    def _concerns(self, node: str, server_round: int) -> bool:
        return self.phase == "open" and server_round == self.round and node in self.cohort

    def _advance(self, now: float) -> list[Action]:
        match self.phase:
            case "waiting":
                if self.published >= self.settings.rounds:
                    return self._finish(now)
                if len(self.online) >= max(self.settings.min_nodes if self.published == 0 else 1, self.settings.quorum):
                    return self._open(now)
            case "open":
                waiting_for = set(self.cohort) - self.accepted - self.declined
                enough = len(self.accepted) >= self.settings.quorum
                late = now >= self.deadline_at
                if enough and (late or not waiting_for):
                    self._go("closing")
                    return [CloseRound(self.round, tuple(sorted(self.accepted)))]
                others = self.online - self.declined - set(self.cohort)
                if late or (not waiting_for and others):
                    return self._open(now)
            case "finishing":
                final = {node for node, (version, _) in self.reported.items() if version == self.published}
                if self.seen <= final or now >= self.deadline_at:
                    self._go("finished")
                    return [EndRun()]
        return []

    def _open(self, now: float) -> list[Action]:
        # Updates that are already in stay in: their senders remain in the cohort of a round that opens again. Nodes that
        # declined are asked again only when there are too few others.
        kept = self.accepted if self.phase == "open" else set()
        willing = self.online - self.declined if self.phase == "open" else self.online
        if len(kept | willing) < self.settings.quorum:
            willing, self.declined = self.online, set()
        chosen = choose_cohort(willing - kept, self.settings.cohort, self.cohort_seed, self.round)
        cohort = tuple(sorted(kept | set(chosen))) or self.cohort
        self._go("open")
        self.cohort, self.accepted = cohort, set(kept)
        self.deadline_at = now + self.settings.deadline_seconds
        return [OpenRound(self.round, self.cohort, self.deadline_at)]

    def _published(self, now: float) -> list[Action]:
        self.published += 1
        self.accepted, self.declined = set(), set()
        if self.published >= self.settings.rounds:
            return self._finish(now)
        if len(self.online) < self.settings.quorum:
            self._go("waiting")
            self.cohort = ()
            return []
        return self._open(now)

    def _finish(self, now: float) -> list[Action]:
        self._go("finishing")
        self.cohort = ()
        self.deadline_at = now + self.settings.finish_seconds
        return [FinishRun(), *self._advance(now)]

    def _go(self, phase: Phase) -> None:
        if (self.phase, phase) not in TRANSITIONS:
            raise RunError(f"the run cannot go from {self.phase} to {phase}; last events: {list(self.story)[-5:]}")
        self.phase = phase
