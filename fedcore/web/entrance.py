# SPDX-License-Identifier: Apache-2.0
"""Who asks with a token, and how often with a wrong one: guesses are counted by address, made to wait longer and
longer, and told to the operator."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from fedcore.web.tokens import Tokens

__all__ = ["Entrance", "TooManyGuesses"]

_FREE, _LONGEST_SECONDS, _FORGOTTEN_SECONDS = 10, 60.0, 3600.0
_MOST_ADDRESSES = 10_000


class TooManyGuesses(Exception):
    """Wrong tokens came from this address: nothing is compared for a while.

    Attributes:
        seconds: For how long.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"too many wrong tokens from this address: wait {seconds:.0f} s")
        self.seconds = seconds


class Entrance:
    """Tokens, and a memory of who tried wrong ones.

    Args:
        tokens: Operators by token.
        say: Gets one line for an address that guesses, and again each time that its number is ten times as large.
        steady: Seconds of a clock that never goes back.

    Example:
        >>> entrance, now = Entrance(Tokens({"a" * 16: "ann"}), print, lambda: 0.0), 0
        >>> [entrance.operator("10.0.0.9", "Bearer guess") for _ in range(4)]
        [None, None, None, None]
        >>> entrance.operator("10.0.0.9", f"Bearer {'a' * 16}")
        'ann'
    """

    def __init__(
        self, tokens: Tokens, say: Callable[[str], None], steady: Callable[[], float] = time.monotonic
    ) -> None:
        self._tokens, self._say, self._steady = tokens, say, steady
        # Wrong tokens of an address, when it may try again, and when it tried last.
        self._wrong: OrderedDict[str, tuple[int, float, float]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def operator(self, address: str, header: str) -> str | None:
        """Who sends an `Authorization` header; None for nobody we know.

        Args:
            address: Of the client.
            header: Empty is no guess.

        Raises:
            TooManyGuesses: It has to wait, whatever it sends.
        """
        now = self._steady()
        count, until, at = self._wrong.get(address, (0, now, now))
        if not header or not self._tokens:
            return None
        if now < until:
            raise TooManyGuesses(until - now)
        name = self._tokens.operator(header)
        if name is not None:
            self._wrong.pop(address, None)
            return name
        count = 1 if now - at > _FORGOTTEN_SECONDS else count + 1
        pause = min(2.0 ** (count - _FREE), _LONGEST_SECONDS) if count >= _FREE else 0.0
        self._wrong[address] = count, now + pause, now
        self._wrong.move_to_end(address)
        if len(self._wrong) > _MOST_ADDRESSES:
            self._wrong.popitem(last=False)
        if count in (_FREE, 100, 1000, 10_000):
            self._say(f"{count} wrong tokens from {address}: it has to wait after each")
        return None
