# SPDX-License-Identifier: Apache-2.0
"""Who is answered next, as a state machine: events in, actions out; no I/O and no clock.

    away ──asked──> waiting for room ──granted──> loading ──loaded──> ready ──give, done, give, ...
      ^                                              ^                  │
      └── the worker ended, or training needs the room ─┴── a new state ───┘

Requests are answered one at a time, in the order in which they came. At most so many wait; one more is refused. A
worker is started when somebody asks, and ended when training needs its memory: the answer that is being given may
come to its end within a grace, whoever waits is told to come again. A new published state is taken up between two
answers."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from edge_client.serving.refusals import Refusal

__all__ = [
    "Action",
    "AnswerQueue",
    "AskRoom",
    "Asked",
    "Died",
    "Done",
    "EndWorker",
    "Event",
    "Give",
    "Left",
    "Load",
    "LoadFailed",
    "Loaded",
    "MakeRoom",
    "NewState",
    "Overdue",
    "Refuse",
    "RoomFree",
    "RoomGranted",
    "RoomRefused",
    "Start",
    "State",
    "StopAnswer",
]

State = Literal["away", "waiting", "loading", "ready"]
# The disk may change under a reader; another try finds the newer state.
_LOAD_TRIES = 4


@dataclass(frozen=True)
class Asked:
    """A request came."""

    answer: int


@dataclass(frozen=True)
class Left:
    """Its client is gone."""

    answer: int


@dataclass(frozen=True)
class RoomGranted:
    """The worker may have its memory now."""


@dataclass(frozen=True)
class RoomRefused:
    """It may not: training has it."""

    refusal: Refusal


@dataclass(frozen=True)
class Loaded:
    """The worker holds the newest state."""


@dataclass(frozen=True)
class LoadFailed:
    """The worker could not load."""

    refusal: Refusal
    changed: bool = False
    """What it read changed meanwhile: worth another try at once."""


@dataclass(frozen=True)
class Done:
    """The worker has answered, or refused, what it was given."""


@dataclass(frozen=True)
class Died:
    """The worker has ended by itself."""

    refusal: Refusal


@dataclass(frozen=True)
class NewState:
    """What lies on the disk is newer than what the worker holds."""


@dataclass(frozen=True)
class MakeRoom:
    """Training wants the memory."""

    refusal: Refusal
    """For whoever waits, and whoever comes while it has it."""


@dataclass(frozen=True)
class Overdue:
    """The grace for the answer that is being given is over."""


@dataclass(frozen=True)
class RoomFree:
    """Training does not want the memory any more."""


Event = (
    Asked
    | Left
    | RoomGranted
    | RoomRefused
    | Loaded
    | LoadFailed
    | Done
    | Died
    | NewState
    | MakeRoom
    | Overdue
    | RoomFree
)


@dataclass(frozen=True)
class AskRoom:
    """Ask for the memory that a worker needs."""


@dataclass(frozen=True)
class Start:
    """Start a worker and have it load."""


@dataclass(frozen=True)
class Load:
    """Have the worker load what lies on the disk now."""


@dataclass(frozen=True)
class Give:
    """Give a request to the worker."""

    answer: int


@dataclass(frozen=True)
class StopAnswer:
    """Have the worker stop this one."""

    answer: int


@dataclass(frozen=True)
class Refuse:
    """Tell a client that it gets no answer, or no more of it."""

    answer: int
    refusal: Refusal


@dataclass(frozen=True)
class EndWorker:
    """End the worker, and give its memory back."""


Action = AskRoom | Start | Load | Give | StopAnswer | Refuse | EndWorker


@dataclass
class AnswerQueue:
    """What the one worker does, for all clients.

    Args:
        most_waiting: Requests that may wait beside the one that is being answered.
    """

    most_waiting: int
    state: State = "away"
    waiting: deque[int] = field(default_factory=deque)
    current: int | None = None
    """What the worker answers now."""
    newer: bool = False
    """Whether there is a newer state on the disk than what is held."""
    making_room: Refusal | None = None
    """While training wants or has the memory: what clients are told."""
    tries: int = 0

    def handle(self, event: Event) -> list[Action]:
        """Take one event; returns what to do, in order."""
        match event:
            case Asked(answer):
                return self._asked(answer)
            case Left(answer):
                return self._left(answer)
            case RoomGranted():
                self.state, self.newer = "loading", False
                return [Start()]
            case RoomRefused(refusal):
                self.state = "away"
                return self._refuse_waiting(refusal)
            case Loaded():
                self.state, self.tries = "ready", 0
            case LoadFailed(refusal, changed):
                return self._load_failed(refusal, changed=changed)
            case Done():
                self.current = None
            case Died(refusal):
                return self._died(refusal)
            case NewState():
                self.newer = self.state != "away"
            case MakeRoom(refusal):
                self.making_room = refusal
                return [*self._refuse_waiting(refusal), *self._next()]
            case Overdue():
                return self._overdue()
            case RoomFree():
                self.making_room = None
        return self._next()

    def check(self) -> None:
        """Invariants that hold between events; tests call it after each."""
        assert len(self.waiting) <= self.most_waiting + 1
        assert self.current is None or self.state == "ready"
        assert self.current not in self.waiting
        assert not self.waiting or self.making_room is None
        # Whoever waits is waited for by something that will come.
        assert not self.waiting or self.state in ("waiting", "loading") or self.current is not None

    def _asked(self, answer: int) -> list[Action]:
        if self.making_room is not None:
            return [Refuse(answer, self.making_room)]
        # The first in line is not waiting for others.
        if len(self.waiting) >= self.most_waiting + (self.current is None):
            words = f"{len(self.waiting)} requests wait already, and one is answered at a time: try again"
            return [Refuse(answer, Refusal(429, words, code="queue_full", retry_after_seconds=5))]
        self.waiting.append(answer)
        return self._next()

    def _left(self, answer: int) -> list[Action]:
        if answer == self.current:
            # It stays the current one until the worker says that it has stopped.
            return [StopAnswer(answer)]
        if answer in self.waiting:
            self.waiting.remove(answer)
        return []

    def _load_failed(self, refusal: Refusal, *, changed: bool) -> list[Action]:
        self.tries += 1
        if changed and self.tries < _LOAD_TRIES:
            self.newer = False
            return [Load()]
        self.state, self.tries = "away", 0
        return [EndWorker(), *self._refuse_waiting(refusal)]

    def _died(self, refusal: Refusal) -> list[Action]:
        actions: list[Action] = []
        loading, self.state, current, self.current = self.state == "loading", "away", self.current, None
        if current is not None:
            actions.append(Refuse(current, refusal))
        if loading:
            # Another start would end the same: whoever waits hears why, and the next request tries again.
            actions += self._refuse_waiting(refusal)
        return [EndWorker(), *actions, *self._next()]

    def _overdue(self) -> list[Action]:
        if self.making_room is None or self.state == "away":
            return []
        actions: list[Action] = []
        if self.current is not None:
            actions.append(Refuse(self.current, self.making_room))
        self.state, self.current = "away", None
        return [*actions, EndWorker()]

    def _refuse_waiting(self, refusal: Refusal) -> list[Action]:
        refused = [Refuse(answer, refusal) for answer in self.waiting]
        self.waiting.clear()
        return [*refused]

    def _next(self) -> list[Action]:
        """What is due, from wherever this stands."""
        if self.current is not None or self.state in ("waiting", "loading"):
            return []
        if self.making_room is not None:
            if self.state == "away":
                return []
            self.state = "away"
            return [EndWorker()]
        if self.state == "ready" and self.newer:
            self.state, self.newer = "loading", False
            return [Load()]
        if not self.waiting:
            return []
        if self.state == "away":
            self.state = "waiting"
            return [AskRoom()]
        self.current = self.waiting.popleft()
        return [Give(self.current)]
