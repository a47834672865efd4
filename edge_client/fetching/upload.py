# SPDX-License-Identifier: Apache-2.0
"""One update on its way up by HTTP, a block at a time from the disk, in a thread of its own.

Whatever goes wrong, the broker brings it in chunks."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edge_client.fetching.exchange import Exchange, Place, Wrong

if TYPE_CHECKING:
    from http.client import HTTPConnection

__all__ = ["Upload"]

_BLOCK_BYTES: Final = 16_384
_LONGEST_SECONDS, _LEAST_BYTES_A_SECOND = 60.0, 1024
"""A request that takes longer goes sooner through the broker, as a chunk of a download does."""
_ANSWER_SECONDS: Final = 30.0
"""A store says that it has taken something once it has written it."""
_TAKEN: Final = (200, 201, 204)


class Upload(Exchange):
    """Puts a file; begins at once.

    Args:
        place: The server, and where there.
        path: The file, which is read once from its beginning.
        size_bytes: What of it is sent, no more and no less.
        woken: Called in the thread, once it has ended by itself.
        patience_seconds: For the whole request, beside what its bytes take.

    Attributes:
        sent_bytes: How many bytes of the file went out.
    """

    def __init__(
        self,
        place: Place,
        path: Path,
        size_bytes: int,
        woken: Callable[[], None],
        *,
        patience_seconds: float = _LONGEST_SECONDS,
    ) -> None:
        super().__init__(place, woken)
        self._path, self._size = path, size_bytes
        self.sent_bytes, self._late = 0, False
        self._limit = threading.Timer(patience_seconds + size_bytes / _LEAST_BYTES_A_SECOND, self._is_late)
        self._limit.daemon = True
        self.begin()

    def stop(self) -> None:
        """See `Exchange`."""
        self._limit.cancel()
        super().stop()

    def exchange(self, connection: HTTPConnection) -> None:
        """See `Exchange`."""
        self._limit.start()
        try:
            with self._path.open("rb") as file:
                connection.connect()
                self._send(connection, file.read)
            connection.sock.settimeout(_ANSWER_SECONDS)
            response = connection.getresponse()
            if response.status not in _TAKEN:
                raise Wrong(f"HTTP {response.status} {response.reason}")
            if self._late:
                # A line that was cut may read as one that is whole.
                raise Wrong("too slow")
            if self.sent_bytes < self._size:
                raise Wrong("it did not wait for the rest")
        except Exception:
            if self._late:
                raise Wrong("too slow") from None
            raise
        finally:
            self._limit.cancel()

    def _send(self, connection: HTTPConnection, read: Callable[[int], bytes]) -> None:
        connection.putrequest("PUT", self.target, skip_accept_encoding=True)
        for name, value in (("Content-Length", str(self._size)), ("User-Agent", "fedkrso"), ("Connection", "close")):
            connection.putheader(name, value)
        # A server that refuses closes the link without reading on, and says why.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.endheaders()
            while self.sent_bytes < self._size:
                if self.stopped or self._late:
                    raise Wrong("stopped")
                block = read(min(_BLOCK_BYTES, self._size - self.sent_bytes))
                if not block:
                    raise Wrong("the update's file ends in the middle")
                connection.send(block)
                self.sent_bytes += len(block)

    def _is_late(self) -> None:
        self._late = True
        self.interrupt()
