# SPDX-License-Identifier: Apache-2.0
"""Two clocks: what time it is, for people, and how much has passed, for deadlines. Somebody who sets a machine's clock
changes the first one alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Clocks"]


@dataclass(frozen=True)
class Clocks:
    """Both.

    Attributes:
        wall: Unix time in seconds. It may jump, forwards and backwards.
        steady: Seconds of some clock that never goes back.

    Example:
        >>> clocks = Clocks(wall=lambda: 1.8e9, steady=lambda: 50.0)
        >>> clocks.wall_of(60.0), clocks.steady_of(1.8e9 + 10)
        (1800000010.0, 60.0)
    """

    wall: Callable[[], float] = time.time
    steady: Callable[[], float] = time.monotonic

    def wall_of(self, steady_at: float) -> float:
        """The time of day of an instant, as the wall clock is now."""
        return self.wall() + steady_at - self.steady()

    def same_wall(self, wall_at: float | None, steady_at: float) -> float:
        """A time of day as it was shown, unless somebody has set the clock since: then as the wall clock is now."""
        found = self.wall_of(steady_at)
        return found if wall_at is None or abs(found - wall_at) > 1.0 else wall_at

    def steady_of(self, wall_at: float) -> float:
        """The instant of a time of day, as the wall clock is now."""
        return self.steady() + wall_at - self.wall()
