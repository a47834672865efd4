# SPDX-License-Identifier: Apache-2.0
"""One request on its way: what was asked, and what comes of it, for the coroutine that answers its client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from edge_client.serving.refusals import Refusal
from fedcore.worker.serving import Classified, Classify, Generate, Generated, Token

__all__ = ["ClientLeft", "News", "Ticket"]

News = Token | Generated | Classified | Refusal


class ClientLeft(Exception):
    """Nobody is there any more to be answered."""


class Ticket:
    """A request in line.

    Args:
        answer: Its number.
        command: For the worker.
        left: Told the number when its client is gone.
    """

    def __init__(self, answer: int, command: Generate | Classify, left: Callable[[int], None]) -> None:
        self.answer, self.command, self._left = answer, command, left
        self._news: asyncio.Queue[News | None] = asyncio.Queue()
        self._over = False

    def tell(self, news: News) -> None:
        """Something came; the last is no `Token`."""
        self._over = self._over or not isinstance(news, Token)
        self._news.put_nowait(news)

    def leave(self) -> None:
        """The client is gone, or needs no more; harmless when repeated."""
        if not self._over:
            self._over = True
            self._left(self.answer)
            self._news.put_nowait(None)

    async def news(self) -> AsyncIterator[Token | Generated | Classified]:
        """What comes, to the end.

        Raises:
            Refusal: There is no answer, or no more of it.
            ClientLeft: `leave` was called.
        """
        while True:
            news = await self._news.get()
            if news is None:
                raise ClientLeft
            if isinstance(news, Refusal):
                raise news
            yield news
            if not isinstance(news, Token):
                return
