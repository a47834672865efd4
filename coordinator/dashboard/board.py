# SPDX-License-Identifier: Apache-2.0
"""What the dashboard shows, in its own event loop: the last view, as bytes and as values, the history, and whoever
waits for news."""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from coordinator.dashboard.history import History
from coordinator.store.pieces import Followed
from coordinator.store.view import RunView

__all__ = ["GZIP_HEAD", "Board", "squeezed"]

# Says: deflate, no name, no time. What follows are blocks that stand for themselves, so that all viewers share them.
GZIP_HEAD = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_KEEP_ALIVE_SECONDS = 15.0
_HELLO = b"retry: 3000\n\n"
_KEEP_ALIVE = b": still here\n\n"
_MOST_VIEWERS = 100
# 300 nodes shrink to a tenth either way; this is the fast one.
_LEVEL = 1


def squeezed(data: bytes) -> bytes:
    """Data as blocks of a gzip stream, ended so that it can be shown at once and anything may follow."""
    deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return deflate.compress(data) + deflate.flush(zlib.Z_FULL_FLUSH)


class Board:
    """The state of a dashboard; every method belongs to its event loop's thread.

    Args:
        first: The encoded view before the coordinator says anything.
        keep_alive_seconds: Pause after which a stream without news says that it lives.
        most_viewers: Streams at a time.
    """

    def __init__(
        self, first: bytes, *, keep_alive_seconds: float = _KEEP_ALIVE_SECONDS, most_viewers: int = _MOST_VIEWERS
    ) -> None:
        self._keep_alive, self._most_viewers = keep_alive_seconds, most_viewers
        self._history = History()
        self._news = asyncio.Event()
        self._closed = False
        self._number = 0
        self._followed, self._news_data, self.etag = Followed(), b"", ""
        self._made: dict[str, bytes] = {}
        self.viewers = 0
        self.take(first)

    def take(self, data: bytes) -> None:
        """Show a newer view, and wake whoever waits for news.

        Args:
            data: A view, or what is new in it (`coordinator.store.pieces.Pieces.news`).
        """
        self._history.add(self._followed.take(data))
        self._news_data, self.etag = data, f'"{hashlib.sha256(self.etag.encode() + data).hexdigest()[:20]}"'
        self._number += 1
        self._made = {}
        self._wake()

    @property
    def view(self) -> RunView:
        """The run as it is by now."""
        return self._followed.view

    @property
    def data(self) -> bytes:
        """The same as JSON."""
        return self.made("data", self._followed.encoded)

    def close(self) -> None:
        """End all streams, each after its last news."""
        self._closed = True
        self._wake()

    @property
    def full(self) -> bool:
        """Whether no further viewer is taken."""
        return self.viewers >= self._most_viewers

    def node(self, name: str) -> dict[str, Any] | None:
        """A node and its history, ready for JSON; None for a stranger."""
        node = self.view.nodes.get(name)
        return None if node is None else {"node": node, "history": self._history.plain(name)}

    def made(self, key: str, make: Callable[[], bytes]) -> bytes:
        """Something that is made from the present view once, whoever asks."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    async def frames(self, *, gzip: bool, changes: bool) -> AsyncIterator[bytes]:
        """Server-sent events: the view at once, and again whenever there is a newer one.

        A viewer that is too slow for every view gets the newest one when it can take more.

        Args:
            gzip: Compressed.
            changes: After the first view only what is new in it, for a viewer that was not too slow.
        """
        self.viewers += 1
        sent = 0
        try:
            yield GZIP_HEAD + squeezed(_HELLO) if gzip else _HELLO
            while True:
                news = self._news
                if self._number != sent:
                    kind = "change" if changes and sent and sent == self._number - 1 else "run"
                    sent = self._number
                    yield self._squeezed(kind) if gzip else self._frame(kind)
                    continue
                if self._closed:
                    return
                try:
                    await asyncio.wait_for(news.wait(), self._keep_alive)
                except asyncio.TimeoutError:
                    yield squeezed(_KEEP_ALIVE) if gzip else _KEEP_ALIVE
        finally:
            self.viewers -= 1

    def _squeezed(self, kind: str) -> bytes:
        return self.made(f"gzip {kind}", lambda: squeezed(self._frame(kind)))

    def _frame(self, kind: str) -> bytes:
        # JSON has no line breaks outside strings, and escapes those inside.
        data = self.data if kind == "run" else self._news_data
        return self.made(kind, lambda: b"id: %d\nevent: %b\ndata: %b\n\n" % (self._number, kind.encode(), data))

    def _wake(self) -> None:
        # Whoever waits holds the old one.
        self._news, old = asyncio.Event(), self._news
        old.set()
