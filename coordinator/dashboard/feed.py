# SPDX-License-Identifier: Apache-2.0
"""From the coordinator's loop to the dashboard's: immutable bytes, at most once a second.

A view belongs to the loop that changes it. The feed is called in that loop after every change, hundreds of times a
second in a large run; when a second is over it hands on what is new in the view, as bytes; another phase is told
sooner, since the loop may be busy for a while then. Whoever wants values decodes them in its own thread."""

from __future__ import annotations

import time
from collections.abc import Callable

from coordinator.store.pieces import Pieces
from coordinator.store.view import RunView

__all__ = ["Feed"]

_LEAST_SECONDS, _LEAST_SECONDS_FOR_A_PHASE = 1.0, 0.1


class Feed:
    """An observer of a run's view.

    Args:
        sink: Gets the encoded view first, then what is new in it (`coordinator.store.pieces.Pieces.news`); called in
            the coordinator's thread.
        clock: Unix time in seconds, written into what is encoded.
        monotonic: Seconds, for pauses.
    """

    def __init__(
        self,
        sink: Callable[[bytes], None],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sink, self._clock, self._monotonic = sink, clock, monotonic
        self._view: RunView | None = None
        self._made_at = float("-inf")
        self._phase = ("", False)
        self._pieces = Pieces()
        self.turned_at = monotonic()
        """When the loop was last heard of, on the monotonic clock; other threads may read it."""

    def observe(self, view: RunView) -> None:
        """The view changed, or the loop turned."""
        now = self._monotonic()
        self.turned_at, self._view = now, view
        phase = view.phase, view.paused
        if now - self._made_at >= (_LEAST_SECONDS if phase == self._phase else _LEAST_SECONDS_FOR_A_PHASE):
            self._made_at, self._phase = now, phase
            self._hand_on(view)

    def close(self) -> None:
        """Hand on what was held back; called in the thread that observed."""
        if self._view is not None:
            self._hand_on(self._view)

    def _hand_on(self, view: RunView) -> None:
        news = self._pieces.news(view, self._clock())
        if news is not None:
            self._sink(news)
