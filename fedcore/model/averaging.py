# SPDX-License-Identifier: Apache-2.0
"""A run's last state as the mean of its last states.

Where nodes have labels in unequal parts, each round undoes a part of the one before, and what the last round happens to
leave is a draw. The mean of the last few states is not: it is what they have in common (weight averaging, Izmailov et
al., arXiv 1803.05407; of averaged rounds, Caldarola et al., arXiv 2203.11834). Nodes need not know of it: it is
published as any state is, and the run can go on from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from fedcore.model.state import ExactState
from fedcore.round.training import SECOND

__all__ = ["LAST_ALONE", "LastStates"]


@dataclass(frozen=True)
class LastStates:
    """Which states count.

    Attributes:
        count: Of the last rounds; 1 for the last alone.
        rounds: Of the run.

    Example:
        >>> import numpy as np
        >>> states = [ExactState(n, (), 0, {"w": np.array([[value]])}) for n, value in enumerate((7, 2, 5), 1)]
        >>> last, kept = LastStates(2, 3), states[0]
        >>> for number, state in enumerate(states, 1):
        ...     kept = last.after(replace(state, window=kept.window, windowed=kept.windowed), number)
        >>> kept.sums["w"].tolist(), kept.windowed
        ([[4]], 0)
    """

    count: int = 1
    rounds: int = 0

    def after(self, state: ExactState, server_round: int) -> ExactState:
        """What stands when a round has closed: its state, with what the last states come to so far, and after the last
        round their mean, exactly rounded to units of 2**-32, half up.

        Second moments are no part of a model, and stay the last round's.

        Args:
            state: After the round, with what was kept after the one before.
            server_round: Which.
        """
        if self.count < 2 or not self.rounds - self.count < server_round <= self.rounds:
            return replace(state, window={}, windowed=0)
        added = {name: total for name, total in state.sums.items() if not name.endswith(SECOND)}
        if state.windowed:
            added = {name: total + state.window[name] for name, total in added.items()}
        number = state.windowed + 1
        if server_round < self.rounds:
            return replace(state, window=added, windowed=number)
        means = {name: (2 * total + number) // (2 * number) for name, total in added.items()}
        return replace(state, sums={**state.sums, **means}, window={}, windowed=0)


LAST_ALONE: Final = LastStates()
