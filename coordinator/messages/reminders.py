# SPDX-License-Identifier: Apache-2.0
"""Which nodes have not heard the present plan. Their telemetry says what they have heard; what is lost on its way is
said again."""

from __future__ import annotations

__all__ = ["Reminders"]

# A plan is on its way for so long before it counts as lost; then twice as long, since a slow link must not be filled
# with plans.
_FIRST_SECONDS, _LONGEST_SECONDS = 2.0, 30.0


class Reminders:
    """Decides when to send a node the plan again; no clock of its own."""

    def __init__(self) -> None:
        self._waits: dict[str, tuple[str, float, float]] = {}

    def due(self, node: str, heard: str, present: str, now: float) -> bool:
        """Whether to send the present plan to a node now.

        Args:
            node: Who.
            heard: Key of the plan that it has heard.
            present: Key of the present plan.
            now: Any clock, seconds.
        """
        if heard == present:
            self._waits.pop(node, None)
            return False
        key, due_at, pause = self._waits.get(node, ("", 0.0, 0.0))
        if key != present:
            self._waits[node] = present, now + _FIRST_SECONDS, _FIRST_SECONDS
            return False
        if now < due_at:
            return False
        pause = min(2 * pause, _LONGEST_SECONDS)
        self._waits[node] = present, now + pause, pause
        return True
