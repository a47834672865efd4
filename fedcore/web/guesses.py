# SPDX-License-Identifier: Apache-2.0
"""Whoever tries tokens waits for each answer, and the owner reads of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fedcore.system.logs import Line

__all__ = ["Guesses"]

_PAUSE_SECONDS = 0.5
_QUIET_SECONDS = 60.0


class Guesses:
    """Wrong tokens at one server; belongs to its event loop.

    Args:
        say: Gets a line for the first one, and then at most one a minute with how many there were.
        clock: Steady seconds.
        pause: Waits for so many seconds.

    Example:
        >>> said, waited = [], []
        >>> async def pause(seconds: float) -> None:
        ...     waited.append(seconds)
        >>> guesses = Guesses(said.append, lambda: 7.0, pause)
        >>> for _ in range(3):
        ...     asyncio.run(guesses.wrong("10.0.0.9"))
        >>> said, waited
        (['a wrong token from 10.0.0.9'], [0.5, 0.5, 0.5])
    """

    def __init__(
        self,
        say: Callable[[str], None],
        clock: Callable[[], float],
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._say, self._clock, self._pause = say, clock, pause
        self._quiet_until: float | None = None
        self._untold = 0

    async def wrong(self, client: str) -> None:
        """A token was wrong; its request is answered when this returns.

        Args:
            client: Address of whoever sent it.
        """
        now = self._clock()
        if self._quiet_until is not None and now < self._quiet_until:
            self._untold += 1
        else:
            more = f", after {self._untold:,} more that were not told" if self._untold else ""
            self._say(Line(f"a wrong token from {client}{more}", event="wrong_token", level="warning"))
            self._quiet_until, self._untold = now + _QUIET_SECONDS, 0
        await self._pause(_PAUSE_SECONDS)
