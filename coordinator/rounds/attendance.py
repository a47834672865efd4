# SPDX-License-Identifier: Apache-2.0
"""Which nodes are online and let one deadline after the other pass: they are invited less and less."""

from __future__ import annotations

from dataclasses import dataclass, field

from coordinator.rounds.events import Silent

__all__ = ["Attendance"]

# Rounds for which a silent node is left out, at most.
_LONGEST_ABSENCE = 15


@dataclass
class Attendance:
    """Counts missed deadlines; no clock of its own."""

    missed: dict[str, int] = field(default_factory=dict)
    """Deadlines that a node let pass while it was online, one after the other."""
    away_until: dict[str, int] = field(default_factory=dict)
    """The round in which a silent node may be invited again."""
    counted_at: float | None = None
    """The deadline for which they were counted last."""

    def came(self, node: str) -> None:
        """A node's update is in."""
        self.missed.pop(node, None)
        self.away_until.pop(node, None)

    def away(self, server_round: int) -> set[str]:
        """Who is not invited to a round, unless there are too few others."""
        return {node for node, until in self.away_until.items() if until > server_round}

    def passed(self, nodes: set[str], able: set[str], deadline_at: float, server_round: int) -> list[Silent]:
        """A deadline has passed. Once is no habit.

        Args:
            nodes: Who was waited for.
            able: Who is online and could have come.
            deadline_at: Of the round; told again (a pause keeps a round from opening), it counts once.
            server_round: Which.
        """
        if self.counted_at == deadline_at:
            return []
        self.counted_at = deadline_at
        silent: list[Silent] = []
        for node in sorted(nodes & able):
            missed = self.missed[node] = self.missed.get(node, 0) + 1
            if missed > 1:
                self.away_until[node] = server_round + 1 + min(2 ** (missed - 1) - 1, _LONGEST_ABSENCE)
                silent.append(Silent(node, missed, self.away_until[node]))
        return silent
