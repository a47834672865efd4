# SPDX-License-Identifier: Apache-2.0
"""How long to wait before something is tried again, so that many who failed together do not come back together."""

from __future__ import annotations

import random

__all__ = ["Backoff"]


class Backoff:
    """Pauses that double from try to try, each drawn from zero to the whole of it ("full jitter": M. Brooker,
    "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).

    Args:
        first_seconds: The longest first pause.
        longest_seconds: No pause is longer.
        jitter: Draws them.

    Example:
        >>> backoff = Backoff(1.0, 4.0, random.Random(0))
        >>> [backoff.next_seconds() <= most for most in (1, 2, 4, 4)]
        [True, True, True, True]
    """

    def __init__(self, first_seconds: float, longest_seconds: float, jitter: random.Random) -> None:
        self._first, self._longest, self._jitter = first_seconds, longest_seconds, jitter
        self._most = first_seconds

    def next_seconds(self, times: float = 1.0) -> float:
        """The next pause.

        Args:
            times: So many times as long as it would be, up to the longest.
        """
        drawn = self._jitter.uniform(0.0, min(self._most * times, self._longest))
        self._most = min(2 * self._most, self._longest)
        return drawn

    def begin(self) -> None:
        """It went well: the next pause is a first one."""
        self._most = self._first
