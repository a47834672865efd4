# SPDX-License-Identifier: Apache-2.0
"""The run as a state machine: events in, actions out; no I/O and no clock.

    waiting ──> open ──> closing ──> open (next round) ... ──> finishing ──> finished
                 └─ deadline without quorum: open again, same round, new cohort and deadline

A deadline comes from the measured speed of the nodes invited, and waits for updates that are on their way and making
progress. A node that is online and lets one deadline after the other pass is invited less and less.

An operator's commands change who takes part and when, never what is computed: while paused nothing opens, not even the
same round again, and an excluded node is neither invited nor waited for.

Every event is kept in `story`, which an illegal transition shows.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from coordinator.job import RoundSection
from coordinator.rounds import words
from coordinator.rounds.attendance import Attendance
from coordinator.rounds.cohort import choose_cohort
from coordinator.rounds.deadlines import deadline_seconds, is_arriving
from coordinator.rounds.events import (
    Action,
    Answer,
    Arriving,
    CloseRound,
    Command,
    Declined,
    DigestReported,
    EndRound,
    EndRun,
    Event,
    Exclude,
    FinishRun,
    Judged,
    NodeOffline,
    NodeOnline,
    OpenRound,
    Pause,
    Readmit,
    Report,
    Resume,
    Revoked,
    RoundPublished,
    UpdateAccepted,
)
from coordinator.rounds.roster import Roster, some_besides
from fedcore.errors import RunError

__all__ = ["TRANSITIONS", "Phase", "RoundMachine"]

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


@dataclass
class RoundMachine:
    """The coordinator's life.

    Args:
        settings: The job's `[round]`.
        cohort_seed: For drawing cohorts.
        published: The last round whose published state is out (0 at the start; more when a run is resumed).
        seen: Nodes that took part before (a resumed run waits for their last word too).
        paused: As an earlier life of the run left it; and so `excluded`.
        untimed: First rounds whose time says nothing of the others': they are of another kind.
        masked: Updates are, so those of a round that opens again are not taken into it.
        judging: Whether the run may end early: a round opens only once the state before the last is measured, and not
            if there was nothing better for long enough until then. The last state itself is not looked at, though its
            measurement may be there: what a run does would depend on how fast it came.
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
    opened_at: float = 0.0
    arriving: dict[str, float] = field(default_factory=dict)
    """When each participant's update last made progress, the latest last."""
    took: dict[str, float] = field(default_factory=dict)
    """Seconds from a round's opening to each node's update, in its last round."""
    attendance: Attendance = field(default_factory=Attendance)
    roster: Roster = field(default_factory=Roster)
    untimed: int = 0
    masked: bool = False
    judging: bool = False
    judged: int = 0
    stop_at: int | None = None
    paused: bool = False
    excluded: set[str] = field(default_factory=set)
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
        self.roster.opened(cohort, done=self.accepted, declined=self.declined, online=self.online)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event; `now` in seconds of a clock that never goes back. Returns what to do, in order."""
        if not isinstance(event, Arriving):
            # One for each chunk: they would leave no room for the story.
            self.story.append((now, event))
        match event:
            case NodeOnline(node):
                self._came(node)
            case NodeOffline(node, left):
                self._went(node, left=left)
                if left and self._concerns(node, self.round) and node not in self.accepted:
                    self._declines(node)
            case Revoked(node):
                self._went(node, left=True)
                self.accepted.discard(node)
                if self._concerns(node, self.round):
                    self._declines(node)
            case UpdateAccepted(node, server_round) if self._concerns(node, server_round):
                self.accepted.add(node)
                self.declined.discard(node)
                self.roster.answered(node)
                self.arriving.pop(node, None)
                self.attendance.came(node)
                if self.opened_at and server_round > self.untimed:
                    # Unknown for a round that an earlier life of the coordinator opened.
                    self.took[node] = now - self.opened_at
            case Arriving(node, server_round) if self._concerns(node, server_round) or self.phase == "finishing":
                self.arriving.pop(node, None)
                self.arriving[node] = now
                return []
            case Judged(version, stop_at):
                self.judged, self.stop_at = version, stop_at
            case Declined(node, server_round) if self._concerns(node, server_round) and node not in self.accepted:
                self._declines(node)
            case DigestReported(node, version, digest):
                self.reported[node] = (version, digest)
                if version == self.published:
                    self.roster.missing.discard(node)
                elif node in self.seen:
                    self.roster.missing.add(node)
            case RoundPublished(server_round) if server_round == self.round and self.phase == "closing":
                return self._published(now)
            case Pause() | Resume() | EndRound() | Exclude() | Readmit() | Report():
                return self._obey(event, now)
        return self._advance(now)

    def check(self) -> None:
        """Invariants that hold between events; tests call it after each."""
        assert self.accepted <= set(self.cohort), self.story
        assert self.phase != "open" or self.cohort, self.story
        assert 0 <= self.published <= self.settings.rounds, self.story
        assert not self.accepted & self.declined, self.story
        final = {node for node, (version, _) in self.reported.items() if version == self.published}
        cohort, roster = set(self.cohort), self.roster
        assert self.phase != "open" or roster.waiting == cohort - self.accepted - self.declined, self.story
        assert self.phase != "open" or roster.others == self.online - self.declined - cohort, self.story
        assert self.phase != "finishing" or roster.missing == self.seen - final, self.story

    @property
    def _able(self) -> set[str]:
        """Who may be invited."""
        return self.online - self.excluded

    @property
    def _able_count(self) -> int:
        return len(self.online) - sum(node in self.online for node in self.excluded)

    @property
    def _is_over(self) -> bool:
        """Whether no further round opens."""
        stops = self.stop_at is not None and self.stop_at < self.published
        return self.published >= self.settings.rounds or stops

    @property
    def _is_unjudged(self) -> bool:
        """Whether a measurement has to come before a round opens."""
        return self.judging and self.judged < self.published - 1

    def _concerns(self, node: str, server_round: int) -> bool:
        return self.phase == "open" and server_round == self.round and node in self.roster.invited

    def _came(self, node: str) -> None:
        self.online.add(node)
        self.roster.came(node, declined=node in self.declined)
        if node not in self.seen:
            self.seen.add(node)
            if self.reported.get(node, (-1, ""))[0] != self.published:
                self.roster.missing.add(node)

    def _went(self, node: str, *, left: bool) -> None:
        self.online.discard(node)
        self.roster.others.discard(node)
        if left:
            self.seen.discard(node)
            self.roster.missing.discard(node)

    def _declines(self, node: str) -> None:
        self.declined.add(node)
        self.roster.answered(node)

    def _advance(self, now: float) -> list[Action]:
        match self.phase:
            case "waiting":
                if self._is_over:
                    return self._finish(now)
                if self._is_unjudged:
                    return []
                if self._able_count >= max(self.settings.min_nodes if self.published == 0 else 1, self.settings.quorum):
                    return self._open(now)
            case "open":
                waiting = self.roster.waiting
                enough = len(self.accepted) >= self.settings.quorum
                late = now >= self.deadline_at and not self._still_arriving(waiting, now)
                first_ones = self.settings.over_selection > 0 and len(self.accepted) >= self.settings.cohort
                all_in = not some_besides(waiting, self.excluded)
                silent = self.attendance.passed(waiting, self._able, self.deadline_at, self.round) if late else []
                if enough and (late or first_ones or all_in):
                    return [*silent, *self._close()]
                if late or (all_in and some_besides(self.roster.others, self.excluded)):
                    # What is masked for one cohort is of no use to another: such a round ends, and comes to nothing.
                    ends = self.masked and self.accepted
                    return [*silent, *(self._close() if ends else self._open(now, late=late))]
            case "finishing":
                missing = self.roster.missing
                if not some_besides(missing, self.excluded) or (
                    now >= self.deadline_at and not self._still_arriving(missing, now)
                ):
                    self._go("finished")
                    return [EndRun()]
        return []

    def _still_arriving(self, waiting_for: set[str], now: float) -> bool:
        """Whether an update is on its way, within twice the time."""
        end = self.deadline_at + self.settings.deadline_seconds
        return now < end and is_arriving(self.arriving, waiting_for, self.excluded, now)

    def _open(self, now: float, *, late: bool = False) -> list[Action]:
        if self.paused:
            return []
        # Updates that are already in stay in: their senders remain in the cohort of a round that opens again. Nodes
        # that declined are asked again only when there are too few others, and are waited for only once the deadline
        # has passed: all that there are may be resting, and would decline at once, again and again.
        kept = self.accepted if self.phase == "open" else set()
        willing = self._able - self.attendance.away(self.round) - (self.declined if self.phase == "open" else set())
        chosen, declined = self._drawn(willing - kept, self.settings.invited), self.declined
        if len(kept | willing) < self.settings.quorum:
            room = self.settings.invited and self.settings.invited - len(chosen)
            chosen |= self._drawn(self._able - willing - kept, room)
            declined = set() if late else self.declined
        cohort = tuple(sorted(kept | chosen)) or tuple(node for node in self.cohort if node not in self.excluded)
        if not cohort:
            # Everybody is excluded: the round opens again when somebody else is there.
            return []
        self._go("open")
        self.cohort, self.accepted, self.declined = cohort, set(kept), declined
        self.roster.opened(cohort, done=kept, declined=declined, online=self.online)
        self.opened_at, self.arriving = now, {}
        self.deadline_at = now + deadline_seconds(self.settings, cohort, self.took, self.attendance.missed)
        return [OpenRound(self.round, self.cohort, self.deadline_at)]

    def _drawn(self, nodes: set[str], size: int) -> set[str]:
        return set(choose_cohort(nodes, size, self.cohort_seed, self.round))

    def _close(self) -> list[Action]:
        self._go("closing")
        return [CloseRound(self.round, tuple(sorted(self.accepted)))]

    def _published(self, now: float) -> list[Action]:
        self.published += 1
        self.accepted, self.declined = set(), set()
        if self._is_over:
            return self._finish(now)
        if self.paused or self._is_unjudged or self._able_count < self.settings.quorum:
            self._go("waiting")
            self.cohort = ()
            return []
        return self._open(now)

    def _finish(self, now: float) -> list[Action]:
        self._go("finishing")
        self.cohort, self.arriving = (), {}
        self.roster.ending(self.seen, self.reported, self.published)
        self.deadline_at = now + self.settings.finish_seconds
        return [FinishRun(), *self._advance(now)]

    def _obey(self, command: Command, now: float) -> list[Action]:
        if self.phase in ("finishing", "finished") and not isinstance(command, Exclude | Readmit | Report):
            return [Answer(False, "the run is finishing: no further round opens")]
        match command:
            case Pause():
                text = "already paused" if self.paused else words.paused(self.phase, self.round)
                self.paused = True
            case Resume():
                text = "resumed: rounds open again" if self.paused else "not paused"
                self.paused = False
            case EndRound():
                if self.phase != "open":
                    return [Answer(False, "no round is open")]
                counted = f"round {self.round} has {len(self.accepted)} of {len(self.cohort)} updates"
                if len(self.accepted) < self.settings.quorum:
                    return [Answer(False, f"{counted}, and its quorum is {self.settings.quorum}")]
                return [Answer(True, f"ended: {counted}"), *self._close()]
            case Exclude(node):
                text = f"{node} is already excluded" if node in self.excluded else self._without(node)
                self.excluded.add(node)
            case Report(text):
                pass
            case Readmit(node):
                text = f"{node} is invited again" if node in self.excluded else f"{node} is not excluded"
                self.excluded.discard(node)
        return [Answer(True, text), *self._advance(now)]

    def _without(self, node: str) -> str:
        invited, accepted = self._concerns(node, self.round), node in self.accepted
        left, quorum = len(self._able - {node}), self.settings.quorum
        return words.excluded(node, self.round, invited=invited, accepted=accepted, left=left, quorum=quorum)

    def _go(self, phase: Phase) -> None:
        if (self.phase, phase) not in TRANSITIONS:
            raise RunError(f"the run cannot go from {self.phase} to {phase}; last events: {list(self.story)[-5:]}")
        self.phase = phase
