# SPDX-License-Identifier: Apache-2.0
"""How fast messages may go out: some brokers take no more than so many a second of one client, and drop the rest."""

from __future__ import annotations

__all__ = ["Pace"]


_BURST_SECONDS = 0.1


class Pace:
    """A bucket of messages and one of bytes, each filled again at its rate and never fuller than a tenth of a second's
    worth, or one message.

    A message goes out while neither bucket is empty, and may leave the one of bytes in debt: a large one passes alone.
    So in any time t no more than rate * (t + 0.1) and one message go out.

    Args:
        messages_per_second: 0 for no limit.
        bytes_per_second: Likewise.

    Example:
        >>> pace = Pace(2, 0)
        >>> [pace.takes(100, at) for at in (0.0, 0.1, 0.5, 0.9, 1.0)]
        [True, False, True, False, True]
    """

    def __init__(self, messages_per_second: float, bytes_per_second: float) -> None:
        self._rates = (messages_per_second, bytes_per_second)
        self._most = (max(1.0, messages_per_second * _BURST_SECONDS), max(1.0, bytes_per_second * _BURST_SECONDS))
        self._left = [*self._most]
        self._at: float | None = None

    def takes(self, size_bytes: int, now: float) -> bool:
        """Whether a message may go out now; it is counted if so.

        Args:
            size_bytes: Of the message.
            now: By a clock that does not go back, in seconds.
        """
        passed = 0.0 if self._at is None else now - self._at
        self._at = now
        filled = zip(self._left, self._rates, self._most, strict=True)
        self._left = [min(most, left + passed * rate) for left, rate, most in filled]
        messages, size = (left if rate else 1.0 for left, rate in zip(self._left, self._rates, strict=True))
        if messages < 1.0 or size <= 0.0:
            return False
        self._left = [self._left[0] - 1, self._left[1] - size_bytes]
        return True
