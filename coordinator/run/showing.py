# SPDX-License-Identifier: Apache-2.0
"""What of the round machine an operator sees, and how much of the loop's time goes into showing it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from coordinator.rounds.machine import RoundMachine
from coordinator.store.view import EventView, RunView
from fedcore.system.clocks import Clocks

__all__ = ["TICK_SECONDS", "Pace", "Showing"]

TICK_SECONDS = 0.25
"""The loop looks at the time so often, whatever comes in."""
_REST = 20
_EVENTS, _MOST_UNTOLD = 50, 40


class Pace:
    """When the loop looks at the time and shows what is new, which takes longer the more nodes there are: four times a
    second, and whenever no message waits, but for no more than a twentieth of the time.

    Args:
        steady: Seconds of a clock that never goes back.
    """

    def __init__(self, steady: Callable[[], float] = time.monotonic) -> None:
        self._steady = steady
        self._began = self._rests_until = float("-inf")
        self._owed = False

    def wait_seconds(self) -> float:
        """For how long to wait for a message."""
        rest = self._rests_until - self._steady() if self._owed else TICK_SECONDS
        return min(TICK_SECONDS, max(0.001, rest))

    def is_due(self, *, idle: bool) -> bool:
        """Whether to look at the time now; if not, it is owed.

        Args:
            idle: No message waits.
        """
        self._owed = True
        now = self._steady()
        return now - self._began > TICK_SECONDS or (idle and now >= self._rests_until)

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Around the work."""
        self._began = self._steady()
        yield
        now = self._steady()
        self._rests_until, self._owed = now + min(TICK_SECONDS, _REST * (now - self._began)), False


class Showing:
    """Brings a view up to date and tells whoever looks.

    Args:
        view: Is changed.
        machine: As it is now.
        clocks: Tell the time of day at which the open round ends.
        observer: Called with the view.
    """

    def __init__(
        self, view: RunView, machine: RoundMachine, clocks: Clocks, observer: Callable[[RunView], None]
    ) -> None:
        self._view, self._machine, self._clocks, self._observer = view, machine, clocks, observer
        self._untold = 0

    def show(self) -> None:
        """Now."""
        view, machine = self._view, self._machine
        view.phase, view.round = machine.phase, machine.round
        view.cohort = machine.cohort
        view.buffer_size = machine.settings.buffer_size if machine.is_buffered else 0
        # Sorted only when there is something new: thousands of names, some times a second.
        if len(view.accepted) != len(machine.accepted) or not machine.accepted.issuperset(view.accepted):
            view.accepted = tuple(sorted(machine.accepted))
        view.paused, view.excluded = machine.paused, tuple(sorted(machine.excluded))
        if machine.phase == "open":
            view.deadline_at = self._clocks.same_wall(view.deadline_at, machine.deadline_at)
        self._untold = 0
        self._observer(view)

    def happened(self, kind: str, text: str) -> None:
        """Something happened that the event log does not get: the ledger itself may be away.

        Args:
            kind: Of the event.
            text: What.
        """
        self.told(EventView(self._clocks.wall(), kind, "", self._machine.round, text))

    def told(self, event: EventView) -> None:
        """Something happened: shown with what else is new, before the view has no room for it."""
        self._view.events = [*self._view.events[1 - _EVENTS :], event]
        self._untold += 1
        if self._untold >= _MOST_UNTOLD:
            self.show()
