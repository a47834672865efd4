# SPDX-License-Identifier: Apache-2.0
"""An update that comes when its round is over, against the real coordinator."""

from __future__ import annotations

import queue
from pathlib import Path

from coordinator.job import SafetySection
from fedcore.round.plan import Plan
from tests.coordinator.messages.one_round import HONEST, Run, good


class WithALateUpdate(Run):
    """One that comes once the run's end is announced, when the round that would be next is the second."""

    first: Plan | None = None
    answer = ""

    def _plan(self, plans: queue.Queue[Plan], ended: queue.Queue[object]) -> Plan:  # type: ignore[override]
        plan = Run._plan(plans, ended)
        if plan.phase == "finished" and self.first is not None:
            self.answer = self.nodes["good-1"].send(self.first, self.files.root / "late.sent", good(3))
        self.first = self.first or plan
        return plan


def test_a_late_update_is_logged_under_its_own_round(tmp_path: Path) -> None:
    run = WithALateUpdate(tmp_path)
    run.go(HONEST, SafetySection())
    assert run.answer == "late: round 1 is over"
    (event,) = [event for event in run.view.events if event.kind == "refused"]
    assert (event.node, event.round, event.text) == ("good-1", 1, "late: round 1 is over")
