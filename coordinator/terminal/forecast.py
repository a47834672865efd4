# SPDX-License-Identifier: Apache-2.0
"""How long a round and a run will probably take, from what was measured; a deadline says only how long they may."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Final

from coordinator.store.view import RunView

__all__ = ["Forecast", "forecast"]

_ROUNDS: Final = 3
"""The newest, whose median is taken: a fleet changes."""
_LEAST_SHARE: Final = 0.05
"""Of a first round's steps, before which nothing is said of it."""


@dataclass(frozen=True)
class Forecast:
    """Seconds from now.

    Attributes:
        round_seconds: To the end of the open round.
        run_seconds: To the end of the last one.
    """

    round_seconds: float
    run_seconds: float


def forecast(view: RunView, now: float) -> Forecast | None:
    """What is ahead; None where no round is open, or nothing is known yet.

    The open round will take as long as the rounds before it; the first one as long as its slowest node's steps say.

    Args:
        view: The run.
        now: Unix seconds.

    Example:
        >>> view = RunView("t", "fedkrso", 6, phase="open", round=1, round_opened_at=100.0, cohort=("a",))
        >>> forecast(view, 130.0) is None
        True
    """
    if view.phase != "open" or view.round_opened_at is None:
        return None
    spent = max(0.0, now - view.round_opened_at)
    if view.rows:
        usual = statistics.median(row.seconds for row in view.rows[-_ROUNDS:])
    else:
        waited = (view.nodes[name] for name in view.cohort if name not in view.accepted and name in view.nodes)
        share = min((node.step / node.steps if node.steps else 0.0 for node in waited), default=0.0)
        if share < _LEAST_SHARE:
            return None
        usual = spent / share
    left = max(0.0, usual - spent)
    return Forecast(left, left + usual * max(0, view.total_rounds - view.round))
