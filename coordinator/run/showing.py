# SPDX-License-Identifier: Apache-2.0
"""What of the round machine an operator sees."""

from __future__ import annotations

from coordinator.rounds.machine import RoundMachine
from coordinator.store.view import RunView
from fedcore.system.clocks import Clocks

__all__ = ["shown"]


def shown(view: RunView, machine: RoundMachine, clocks: Clocks) -> None:
    """Bring a view up to date.

    Args:
        view: Is changed.
        machine: As it is now.
        clocks: Tell the time of day at which the open round ends.
    """
    view.phase, view.round = machine.phase, machine.round
    view.cohort, view.accepted = machine.cohort, tuple(sorted(machine.accepted))
    view.paused, view.excluded = machine.paused, tuple(sorted(machine.excluded))
    if machine.phase == "open":
        view.deadline_at = clocks.same_wall(view.deadline_at, machine.deadline_at)
