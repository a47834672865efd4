# SPDX-License-Identifier: Apache-2.0
"""A store that does not serve: left alone for a while, and told of once, as is that it serves again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fedcore.errors import StorageError

__all__ = ["Outage"]

_KIND: Final = "objects"
_REST_SECONDS: Final = 60.0


class Outage:
    """Whether a store is left alone.

    Args:
        note: Adds to the event log, by kind, node and words.
        steady: Seconds of a clock that never goes back.
        instead: What the broker brings meanwhile.
        again: What is added where it serves again.

    Attributes:
        until: By that clock.
    """

    def __init__(
        self, note: Callable[[str, str, str], None], steady: Callable[[], float], instead: str, again: str = ""
    ) -> None:
        self._note, self._steady, self._instead, self._again = note, steady, instead, again
        self.until, self._told = float("-inf"), False

    @property
    def lasts(self) -> bool:
        """Whether it is, now."""
        return self._steady() < self.until

    def begins(self, error: StorageError) -> None:
        """It does not serve."""
        self.until = self._steady() + _REST_SECONDS
        if not self._told:
            self._note(_KIND, "", f"{error.one_line()}; the broker brings {self._instead}")
        self._told = True

    def ends(self, place: str) -> None:
        """It serves."""
        if self._told:
            self._told = False
            self._note(_KIND, "", f"{place}: serves again{self._again}")
