# SPDX-License-Identifier: Apache-2.0
"""The run as a state machine: events in, actions out; no I/O and no clock.

    waiting ──> open ──> closing ──> open (next round) ... ──> finishing ──> finished
                 └─ deadline without quorum: open again, same round, new cohort and deadline

A deadline comes from the measured speed of the nodes invited, and waits for updates that are on their way and making
progress. A node that is online and lets one deadline after the other pass is invited less and less.

A buffered round (`RoundSection.kind`) ends with the first updates that fill its buffer, whichever round they were
trained for: who decides that they may count (`coordinator.messages.admission`) says in which round, by `place`. What
comes from a node that is in the buffer already, or while no round is open, is held for the next one. Nobody is invited
less for being slow.

An operator's commands change who takes part and when, never what is computed: while paused nothing opens, not even the
same round again, and an excluded node is neither invited nor waited for.

Every event is kept in `story`, which an illegal transition shows.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import coordinator.rounds.events as e
from coordinator.rounds import words
from coordinator.rounds.attendance import Attendance
from coordinator.rounds.cohort import choose_cohort, next_in_turn
from coordinator.rounds.deadlines import deadline_seconds, is_arriving
from coordinator.rounds.phases import TRANSITIONS, Phase
from coordinator.rounds.roster import Roster, some_besides
from coordinator.rounds.section import RoundSection
from fedcore.errors import RunError

__all__ = ["RoundMachine"]


@dataclass
class RoundMachine:
    """The coordinator's life.

    Args:
        settings: The job's `[round]`.
        cohort_seed: For drawing cohorts.
        published: The last round whose published state is out (0 at the start; more when a run is resumed).
        seen: Nodes that took part before (a resumed run waits for their last word too).
        paused: As an earlier life of the run left it; and so `excluded`.
        untimed: Rounds whose time says nothing of the others': they are of another kind.
        masked: Updates are, so those of a round that opens again are not taken into it.
        judging: Whether the run may end early: a round opens only once the state before the last is measured, and not
            if there was nothing better for long enough until then. The last state is not looked at: what a run does
            would depend on how fast its measurement came.
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
    held: set[str] = field(default_factory=set)
    """Nodes with an update for the round that opens next."""
    arriving: dict[str, float] = field(default_factory=dict)
    """When each participant's update last made progress, the latest last."""
    took: dict[str, float] = field(default_factory=dict)
    """Seconds from a round's opening to each node's update, in its last round."""
    attendance: Attendance = field(default_factory=Attendance)
    roster: Roster = field(default_factory=Roster)
    turns: dict[str, int] = field(default_factory=dict)  # The last round that counted each node, or that it let pass.
    untimed: frozenset[int] = frozenset()
    masked: bool = False
    judging: bool = False
    judged: int = 0
    stop_at: int | None = None
    paused: bool = False
    excluded: set[str] = field(default_factory=set)
    story: deque[tuple[float, e.Event]] = field(default_factory=lambda: deque(maxlen=200))

    @property
    def round(self) -> int:
        """The round that is open, or that opens next."""
        return self.published + 1

    @property
    def next_round(self) -> int:
        """The round that opens next."""
        return self.round + (self.phase in ("open", "closing"))

    @property
    def is_buffered(self) -> bool:
        """Whether the round that is open, or that opens next, is."""
        return self.settings.buffered and self.round not in self.untimed

    def place(self, node: str) -> int:
        """The round in which an update of a node would count that is there now, where rounds are buffered: the first
        that has none of it. 0 if both the open and the next one do, or none will open."""
        if self.phase == "open" and node not in self.accepted:
            return self.round
        takes = self.phase in ("open", "waiting") and node not in self.held
        return self.next_round if takes and self.next_round <= self.settings.rounds else 0

    def resume_open(self, cohort: tuple[str, ...], accepted: set[str], deadline_at: float) -> None:
        """Continue an open round that the ledger remembers."""
        self._go("open")
        self.cohort, self.accepted, self.deadline_at = cohort, set(accepted), deadline_at
        self.seen.update(cohort)
        self.roster.opened(cohort, done=self.accepted, declined=self.declined, online=self.online)

    def handle(self, event: e.Event, now: float) -> list[e.Action]:
        """Take one event; `now` in seconds of a clock that never goes back. Returns what to do, in order."""
        if not isinstance(event, e.Arriving):
            # One for each chunk: they would leave no room for the story.
            self.story.append((now, event))
        match event:
            case e.NodeOnline(node):
                self._came(node)
            case e.NodeOffline(node, left):
                self._went(node, left=left)
                if left and self._concerns(node, self.round) and node not in self.accepted:
                    self._declines(node)
            case e.Revoked(node):
                self._went(node, left=True)
                self.accepted.discard(node)
                self.held.discard(node)
                if self._concerns(node, self.round):
                    self._declines(node)
            case e.UpdateAccepted(node, server_round) if self.is_buffered and server_round == self.next_round:
                self.held.add(node)
            case e.UpdateAccepted(node, server_round) if self._takes(node, server_round):
                self.accepted.add(node)
                self.declined.discard(node)
                self.roster.answered(node)
                self.arriving.pop(node, None)
                self.attendance.came(node)
                if self.opened_at and server_round not in self.untimed:  # Not of a round that an earlier life opened.
                    self.took[node] = now - self.opened_at
            case e.Arriving(node, server_round) if self._concerns(node, server_round) or self.phase == "finishing":
                self.arriving.pop(node, None)
                self.arriving[node] = now
                return []
            case e.Judged(version, stop_at):
                self.judged, self.stop_at = version, stop_at
            case e.Declined(node, server_round) if self._concerns(node, server_round) and node not in self.accepted:
                self._declines(node)
            case e.DigestReported(node, version, digest):
                self.reported[node] = (version, digest)
                if version == self.published:
                    self.roster.missing.discard(node)
                elif node in self.seen:
                    self.roster.missing.add(node)
            case e.RoundPublished(server_round) if server_round == self.round and self.phase == "closing":
                return self._published(now)
            case e.Pause() | e.Resume() | e.EndRound() | e.Exclude() | e.Readmit() | e.Report():
                return self._obey(event, now)
        return self._advance(now)

    def check(self) -> None:
        """Invariants that hold between events; tests call it after each."""
        assert self.is_buffered or (self.accepted <= set(self.cohort) and not self.held), self.story
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

    def _takes(self, node: str, server_round: int) -> bool:
        """Whether an update counts in the open round: in a buffered one, whoever's it is."""
        return self.phase == "open" and server_round == self.round and (self.is_buffered or node in self.roster.invited)

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

    def _advance(self, now: float) -> list[e.Action]:
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
                usual = self.is_buffered == self.settings.buffered
                first_ones = usual and 0 < self.settings.first_updates <= len(self.accepted)
                all_in = not some_besides(waiting, self.excluded)
                counts = late and not self.is_buffered
                silent = self.attendance.passed(waiting, self._able, self.deadline_at, self.round) if counts else []
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
                    return [e.EndRun()]
        return []

    def _still_arriving(self, waiting_for: set[str], now: float) -> bool:
        """Whether an update is on its way, within twice the time."""
        end = self.deadline_at + self.settings.deadline_seconds
        return now < end and is_arriving(self.arriving, waiting_for, self.excluded, now)

    def _open(self, now: float, *, late: bool = False) -> list[e.Action]:
        if self.paused:
            return []
        # Updates that are in stay in, with their senders. Nodes that declined are asked again only when there are too
        # few others, and waited for only once the deadline has passed: all may be resting, and decline at once.
        kept = self.accepted if self.phase == "open" else self.held
        self.turns |= dict.fromkeys(self.roster.waiting, self.round) if late else {}
        willing = self._able - self.attendance.away(self.round) - (self.declined if self.phase == "open" else set())
        chosen, declined = self._drawn(willing - kept, self.settings.invited), self.declined
        if len(kept | willing) < self.settings.quorum:
            room = self.settings.invited and self.settings.invited - len(chosen)
            chosen |= self._drawn(self._able - willing - kept, room)
            declined = set() if late else self.declined
        # What somebody trains whom a buffered round has invited counts, also after it was away.
        chosen |= set(self.cohort) - self.excluded if self.is_buffered and self.phase == "open" else set()
        cohort = tuple(sorted(kept | chosen)) or tuple(node for node in self.cohort if node not in self.excluded)
        if not cohort:  # Everybody is excluded: the round opens again when somebody else is there.
            return []
        self.held = self.held if self.phase == "open" else set()
        self._go("open")
        self.cohort, self.accepted, self.declined = cohort, set(kept), declined
        self.roster.opened(cohort, done=kept, declined=declined, online=self.online)
        self.opened_at, self.arriving = now, {}
        self.deadline_at = now + deadline_seconds(self.settings, cohort, self.took, self.attendance.missed)
        return [e.OpenRound(self.round, self.cohort, self.deadline_at)]

    def _drawn(self, nodes: set[str], size: int) -> set[str]:
        if self.settings.order == "cycle":
            # A round of another kind is everybody's.
            return set(next_in_turn(nodes, 0 if self.round in self.untimed else size, self.turns))
        return set(choose_cohort(nodes, size, self.cohort_seed, self.round))

    def _close(self) -> list[e.Action]:
        self._go("closing")
        return [e.CloseRound(self.round, tuple(sorted(self.accepted)))]

    def _published(self, now: float) -> list[e.Action]:
        self.published += 1
        self.turns |= dict.fromkeys(self.accepted, self.published)
        self.accepted, self.declined = set(), set()
        if self._is_over:
            return self._finish(now)
        if self.paused or self._is_unjudged or self._able_count < self.settings.quorum:
            self._go("waiting")
            self.cohort = ()
            return []
        return self._open(now)

    def _finish(self, now: float) -> list[e.Action]:
        self._go("finishing")
        self.cohort, self.arriving = (), {}
        self.roster.ending(self.seen, self.reported, self.published)
        self.deadline_at = now + self.settings.finish_seconds
        return [e.FinishRun(), *self._advance(now)]

    def _obey(self, command: e.Command, now: float) -> list[e.Action]:
        if self.phase in ("finishing", "finished") and not isinstance(command, e.Exclude | e.Readmit | e.Report):
            return [e.Answer(False, "the run is finishing: no further round opens")]
        match command:
            case e.Pause():
                text = "already paused" if self.paused else words.paused(self.phase, self.round)
                self.paused = True
            case e.Resume():
                text = "resumed: rounds open again" if self.paused else "not paused"
                self.paused = False
            case e.EndRound():
                if self.phase != "open":
                    return [e.Answer(False, "no round is open")]
                counted = f"round {self.round} has {len(self.accepted)} of {len(self.cohort)} updates"
                if len(self.accepted) < self.settings.quorum:
                    return [e.Answer(False, f"{counted}, and its quorum is {self.settings.quorum}")]
                return [e.Answer(True, f"ended: {counted}"), *self._close()]
            case e.Exclude(node):
                text = f"{node} is already excluded" if node in self.excluded else self._without(node)
                self.excluded.add(node)
            case e.Report(text):
                pass
            case e.Readmit(node):
                text = f"{node} is invited again" if node in self.excluded else f"{node} is not excluded"
                self.excluded.discard(node)
        return [e.Answer(True, text), *self._advance(now)]

    def _without(self, node: str) -> str:
        invited, accepted = self._concerns(node, self.round), node in self.accepted
        left, quorum = len(self._able - {node}), self.settings.quorum
        return words.excluded(node, self.round, invited=invited, accepted=accepted, left=left, quorum=quorum)

    def _go(self, phase: Phase) -> None:
        if (self.phase, phase) not in TRANSITIONS:
            raise RunError(f"the run cannot go from {self.phase} to {phase}; last events: {list(self.story)[-5:]}")
        self.phase = phase
