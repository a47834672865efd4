# SPDX-License-Identifier: Apache-2.0
"""A fleet's node as a state machine: events in, actions out; no I/O and no clock.

A run is judged by its notice first, then by a look at the data, which a node that is in no run takes. What it could do
is told; the server chooses among those that can, and names them in its next notice. So a node takes part when it is
named in a run that it had said yes to, and leaves when it is named no more, or when the run is not there any more."""

from __future__ import annotations

from dataclasses import dataclass, field

from edge_client.owner.accepting import Offering, why_not
from fedcore.system.software import software
from fedcore.wire.fleet import Candidate, FleetRun, Notice

__all__ = ["Action", "Event", "FleetNode", "Heard", "Leave", "Left", "LookAt", "Looked", "TakePart", "Tell"]


@dataclass(frozen=True)
class Heard:
    """A notice that is the server's.

    Attributes:
        number: It rises with every notice.
        notice: What it says.
    """

    number: int
    notice: Notice


@dataclass(frozen=True)
class Looked:
    """The data was looked at for a run; `reason` says why it cannot serve, and is empty where it can."""

    submission: str
    reason: str


@dataclass(frozen=True)
class Left:
    """The node takes part no more.

    Attributes:
        reason: Why it will not again; empty where nothing is against it.
        over: The run is finished.
    """

    reason: str = ""
    over: bool = False


Event = Heard | Looked | Left


@dataclass(frozen=True)
class LookAt:
    """Look whether the data can serve a run."""

    run: FleetRun


@dataclass(frozen=True)
class TakePart:
    """Begin to take part in a run."""

    run: FleetRun


@dataclass(frozen=True)
class Leave:
    """Take part no more; `why` for a person."""

    why: str


@dataclass(frozen=True)
class Tell:
    """Say what this node would do."""


Action = LookAt | TakePart | Leave | Tell


@dataclass
class FleetNode:
    """One node.

    Args:
        node: Its id.
        offering: What it has, and what its owner wants.
        number: Of the newest notice that it has heard.
    """

    node: str
    offering: Offering
    number: int = 0
    notice: Notice = Notice(())
    current: FleetRun | None = None
    leaving: bool = False
    looking: str = ""
    """Submission whose look is under way; empty for none."""
    verdicts: dict[str, str] = field(default_factory=dict)
    """By submission why it takes no part; empty where it would."""
    over: set[str] = field(default_factory=set)
    """Submissions that are finished for this node."""

    def handle(self, event: Event) -> list[Action]:
        """Take one event; returns what to do, in order."""
        before = self.candidate()
        match event:
            case Heard(number, notice):
                self.number = max(self.number, number)
                self._notice(notice)
            case Looked(submission, reason):
                if submission == self.looking:
                    self.looking = ""
                # A look says nothing against what a notice, or the owner, has said meanwhile.
                if submission in self._known and not self.verdicts.get(submission):
                    self.verdicts[submission] = reason
            case Left(reason, over):
                assert self.current is not None
                submission = self.current.submission
                if reason and submission in self._known:
                    self.verdicts[submission] = reason
                if over and submission in self._known:
                    self.over.add(submission)
                self.current, self.leaving = None, False
        # Who has just left waits for a notice: it may be the last one of a run that is over.
        actions = self._next(begin=not isinstance(event, Left))
        return [*actions, Tell()] if self.candidate() != before else actions

    def candidate(self) -> Candidate:
        """What it tells the server."""
        return Candidate(
            online=True,
            heard=self.number,
            run="" if self.current is None else self.current.run,
            able=tuple(run.submission for run in self.notice.runs if self._able(run)),
            declined={run.run: why for run in self.notice.runs if (why := self.verdicts.get(run.submission, ""))},
            software=software(),
        )

    def offer(self, offering: Offering) -> list[Action]:
        """The owner wants something else: all runs are judged anew."""
        self.offering = offering
        self.verdicts = {run.submission: why for run in self.notice.runs if (why := why_not(offering, run))}
        return [*self._next(begin=True), Tell()]

    def check(self) -> None:
        """Invariants that hold between events; tests call it after each."""
        assert self.verdicts.keys() <= self._known and self.over <= self._known
        assert self.current is not None or not self.leaving
        assert not (self.current and self.verdicts.get(self.current.submission)) or self.leaving

    @property
    def _known(self) -> set[str]:
        """Submissions of the newest notice."""
        return {run.submission for run in self.notice.runs}

    def _notice(self, notice: Notice) -> None:
        self.notice = notice
        known = self._known
        self.verdicts = {submission: why for submission, why in self.verdicts.items() if submission in known}
        self.over &= known
        for run in notice.runs:
            if run.submission not in self.verdicts and (why := why_not(self.offering, run)):
                self.verdicts[run.submission] = why

    def _able(self, run: FleetRun) -> bool:
        return self.verdicts.get(run.submission) == "" and run.submission not in self.over

    def _next(self, *, begin: bool) -> list[Action]:
        if self.current is not None:
            why = self._why_leave(self.current)
            if not why or self.leaving:
                return []
            self.leaving = True
            return [Leave(why)]
        wanted = next((run for run in self.notice.runs if self.node in run.nodes and self._able(run)), None)
        if wanted is not None and begin:
            self.current = wanted
            return [TakePart(wanted)]
        unknown = next((run for run in self.notice.runs if run.submission not in self.verdicts), None)
        if unknown is None or self.looking:
            return []
        self.looking = unknown.submission
        return [LookAt(unknown)]

    def _why_leave(self, current: FleetRun) -> str:
        now = next((run for run in self.notice.runs if run.submission == current.submission), None)
        if now is None:
            return f"run {current.run} is over"
        if why := self.verdicts.get(current.submission, ""):
            return why
        return "" if self.node in now.nodes else f"run {current.run} goes on without this node"
