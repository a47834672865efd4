# SPDX-License-Identifier: Apache-2.0
"""The queue of runs as a state machine: events in, actions out; no I/O and no clock.

    queued ──a slot is free──> running ──its process ended──> finished | failed
                                  │  └─ended before its time──> waiting ──the pause is over──> running
                                  └──somebody stops it──> stopping ──its process ended──> stopped
    queued, waiting ──somebody stops it──> stopped

Whatever changes is kept (`Keep`) before it is acted on: a server that is killed in between finds the entry, looks
whether its process lives, and goes on. An entry has a slot from its first start to its end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from fedcore.errors import RunError

__all__ = [
    "ACTIVE",
    "ENDED",
    "Action",
    "Begin",
    "End",
    "Ending",
    "Entry",
    "Keep",
    "Kill",
    "Queue",
    "QueueState",
    "pause_seconds",
]

QueueState = Literal["queued", "running", "waiting", "stopping", "finished", "stopped", "failed"]
ACTIVE: Final = ("running", "waiting", "stopping")
"""An entry in one of these has a slot."""
ENDED: Final = ("finished", "stopped", "failed")
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 300.0
# A process that was asked to end has so long before it is killed, and again before it is killed once more.
_STOP_SECONDS = 30.0


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A submitted run."""

    run: str
    submission: str
    """32 hexadecimal digits that no other submission has."""
    by: str
    """Who submitted it."""
    number: int
    """Its place among all submissions."""
    submitted_at: float
    state: QueueState = "queued"
    since: float = 0.0
    """Unix seconds at which it came into this state."""
    slot: int = 0
    """From 1; 0 for none."""
    tries: int = 0
    """Times in a row that its process ended without a new round."""
    rounds: int = 0
    """That were published when its process ended last."""
    retry_at: float = 0.0
    """Unix seconds before which a waiting one is not begun again."""
    words: str = ""
    """Why it is as it is, one line; empty where there is nothing to say."""

    @property
    def ended(self) -> bool:
        """Whether nothing becomes of it any more."""
        return self.state in ENDED

    @property
    def announced(self) -> bool:
        """Whether nodes are to take part in it."""
        return self.state in ("running", "waiting")


@dataclass(frozen=True)
class Ending:
    """How a run's process ended.

    Attributes:
        kind: `finished`: the run is. `hopeless`: another try would end alike. `interrupted`: somebody ended it, or the
            machine went down: no try of its own. `died`: anything else.
        words: Its last line.
        rounds: That are published.
    """

    kind: Literal["finished", "hopeless", "interrupted", "died"]
    words: str
    rounds: int


@dataclass(frozen=True)
class Keep:
    """Write an entry down, so that it is there after any kill."""

    entry: Entry


@dataclass(frozen=True)
class Begin:
    """Start the run's process."""

    entry: Entry


@dataclass(frozen=True)
class End:
    """Ask the run's process to end in order."""

    entry: Entry


@dataclass(frozen=True)
class Kill:
    """End the run's process at once: it was asked to, and has not."""

    entry: Entry


Action = Keep | Begin | End | Kill


def pause_seconds(tries: int) -> float:
    """How long to wait before a run is begun again.

    Args:
        tries: Times that its process ended without a new round, from 1.

    Example:
        >>> [pause_seconds(tries) for tries in (1, 2, 3, 20)]
        [2.0, 4.0, 8.0, 300.0]
    """
    return min(_FIRST_PAUSE * 2.0 ** min(tries - 1, 20), _LONGEST_PAUSE)


class Queue:
    """All submitted runs.

    Args:
        at_once: Slots.
        tries: Times in a row that a run's process may end without a new round.
        entries: Of an earlier life.

    Attributes:
        entries: By the run's name.
    """

    def __init__(self, at_once: int, tries: int, entries: Iterable[Entry] = ()) -> None:
        self._at_once, self._tries = at_once, tries
        self.entries = {entry.run: entry for entry in entries}

    def submit(self, run: str, submission: str, by: str, now: float) -> list[Action]:
        """One more run.

        Raises:
            RunError: The name was used already.
        """
        if (known := self.entries.get(run)) is not None:
            raise RunError(f"run {run!r} was submitted already, and is {known.state}", remedy="give it another name")
        number = 1 + max((entry.number for entry in self.entries.values()), default=0)
        entry = Entry(run=run, submission=submission, by=by, number=number, submitted_at=now, since=now)
        return [*self._become(entry), *self.tick(now)]

    def stop(self, run: str, by: str, now: float) -> list[Action]:
        """Somebody does not want a run any more.

        Raises:
            RunError: There is no such run, or it has ended.
        """
        entry = self.entries.get(run)
        if entry is None:
            raise RunError(f"no run {run!r} was submitted", remedy="fedkrso server list")
        if entry.ended:
            raise RunError(f"run {run!r} is {entry.state} already")
        if entry.state == "stopping":
            return []
        words = f"stopped by {by}"
        if entry.state == "running":
            stopping = self._changed(entry, now, state="stopping", words=words)
            return [*self._become(stopping), End(stopping)]
        return [*self._become(self._changed(entry, now, state="stopped", slot=0, words=words)), *self.tick(now)]

    def ended(self, run: str, ending: Ending, now: float) -> list[Action]:
        """A run's process has ended; nothing where the entry has none."""
        entry = self.entries[run]
        if entry.state not in ("running", "stopping"):
            return []
        if ending.kind == "finished":
            new = self._changed(entry, now, state="finished", slot=0, rounds=ending.rounds, words="")
        elif entry.state == "stopping":
            new = self._changed(entry, now, state="stopped", slot=0, rounds=ending.rounds)
        else:
            new = self._again(entry, ending, now)
        return [*self._become(new), *self.tick(now)]

    def tick(self, now: float) -> list[Action]:
        """Look at the time: begin what can be begun, kill what was asked to end long ago."""
        actions: list[Action] = []
        for entry in self._in_order():
            if entry.state == "waiting" and self._due(entry, now):
                actions += self._begin(self._changed(entry, now, state="running", words=""))
            elif entry.state == "stopping" and not 0 <= now - entry.since < _STOP_SECONDS:
                again = self._changed(entry, now)
                actions += [*self._become(again), Kill(again)]
            elif entry.state == "queued" and (slot := self._free_slot()):
                actions += self._begin(self._changed(entry, now, state="running", slot=slot))
        return actions

    @property
    def active(self) -> list[Entry]:
        """Those that have a slot, in their order."""
        return [entry for entry in self._in_order() if entry.state in ACTIVE]

    def check(self) -> None:
        """Invariants that hold between events; tests call it after each."""
        slots = [entry.slot for entry in self.entries.values() if entry.slot]
        assert len(slots) == len(set(slots)) and all(1 <= slot <= self._at_once for slot in slots), slots
        assert all((entry.slot > 0) == (entry.state in ACTIVE) for entry in self.entries.values())
        assert not any(entry.state == "queued" for entry in self.entries.values()) or len(slots) == self._at_once
        numbers = [entry.number for entry in self.entries.values()]
        assert len(numbers) == len(set(numbers))

    def _again(self, entry: Entry, ending: Ending, now: float) -> Entry:
        before = 0 if ending.rounds > entry.rounds else entry.tries
        tries = before if ending.kind == "interrupted" else before + 1
        if ending.kind == "hopeless" or tries >= self._tries:
            return self._changed(
                entry, now, state="failed", slot=0, tries=tries, rounds=ending.rounds, words=ending.words
            )
        retry_at = now + pause_seconds(max(1, tries))
        return self._changed(
            entry, now, state="waiting", tries=tries, rounds=ending.rounds, retry_at=retry_at, words=ending.words
        )

    def _begin(self, entry: Entry) -> list[Action]:
        return [*self._become(entry), Begin(entry)]

    def _become(self, entry: Entry) -> list[Action]:
        self.entries[entry.run] = entry
        return [Keep(entry)]

    def _in_order(self) -> list[Entry]:
        return sorted(self.entries.values(), key=lambda entry: entry.number)

    def _free_slot(self) -> int:
        taken = {entry.slot for entry in self.entries.values()}
        return next((slot for slot in range(1, self._at_once + 1) if slot not in taken), 0)

    @staticmethod
    def _due(entry: Entry, now: float) -> bool:
        # A clock that was set back makes nobody wait longer than the longest pause.
        return now >= entry.retry_at or entry.retry_at - now > _LONGEST_PAUSE

    @staticmethod
    def _changed(entry: Entry, now: float, **changes: object) -> Entry:
        return msgspec.structs.replace(entry, since=now, **changes)
