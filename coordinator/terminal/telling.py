# SPDX-License-Identifier: Apache-2.0
"""What a program that leads a run is told of it: each round once, and each event as a line."""

from __future__ import annotations

from collections.abc import Callable

from coordinator.job import EvaluationSection
from coordinator.store.ledger import RoundRow
from coordinator.store.view import RunView
from coordinator.terminal.story import Story
from fedcore.system.logs import Line

__all__ = ["Teller"]


class Teller:
    """Tells a program's callbacks what is new in a view.

    Args:
        on_round: Gets every round once.
        on_event: Gets every line.
        section: A round counts once all is known that is to be measured of it.
    """

    def __init__(
        self,
        on_round: Callable[[RoundRow], None],
        on_event: Callable[[Line], None],
        section: EvaluationSection | None,
    ) -> None:
        self._on_round, self._on_event, self._section = on_round, on_event, section
        self._story, self._told = Story(), set[int]()
        self._all_told = 0

    def observe(self, view: RunView) -> None:
        """The view changed."""
        for line in self._story.lines(view):
            self._on_event(line)
        rows = view.rows
        for row in rows[self._all_told :]:
            if row.round not in self._told and self._is_known(row, view):
                self._told.add(row.round)
                self._on_round(row)
        while self._all_told < len(rows) and rows[self._all_told].round in self._told:
            self._all_told += 1

    def _is_known(self, row: RoundRow, view: RunView) -> bool:
        section, newest = self._section, row.round == view.rows[-1].round
        if section is None:
            return True
        # A state that it is not the turn of is measured if it is the last: that shows when another follows, or none.
        here = row.accuracy is not None or not (section.here and (section.is_due(row.round) or newest))
        return here and (row.nodes is not None or not section.on_nodes or not newest or view.phase == "finished")
