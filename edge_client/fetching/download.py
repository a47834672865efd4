# SPDX-License-Identifier: Apache-2.0
"""One object on its way down by HTTP, chunk by chunk to the disk, in a thread of its own.

The server is not believed: what it sends lies in the same partial file that chunks from the broker would, and counts by
its hash. Nothing but the address that was given is asked for: no redirect is followed, no proxy of the environment is
used, and no more is read than the object is long. Whatever goes wrong, the chunks that came stay, and the broker brings
the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from edge_client.fetching.exchange import Exchange, Place, Wrong
from fedcore.wire.files import PartialFile

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

__all__ = ["Download"]

_CHUNK_SECONDS: Final = 60.0
"""A chunk that takes longer comes sooner through the broker."""


class Download(Exchange):
    """Fetches what is missing of a partial file; begins at once.

    Args:
        place: The server, and what is there.
        part: Nobody else may touch it until `ended`, or until `stop` has returned.
        woken: Called in the thread, once it has ended by itself.

    Attributes:
        read_bytes: How many came.
    """

    def __init__(self, place: Place, part: PartialFile, woken: Callable[[], None]) -> None:
        super().__init__(place, woken)
        self._part, self.read_bytes = part, 0
        self.begin()

    def exchange(self, connection: HTTPConnection) -> None:
        """See `Exchange`."""
        for first, behind in self._gaps():
            self._fetch(connection, first, behind)

    def _gaps(self) -> Iterator[tuple[int, int]]:
        """Runs of chunks that are missing: the first, and the one behind the last."""
        missing = list(self._part.bitmap.missing())
        while missing:
            length = next((n for n, index in enumerate(missing) if index != missing[0] + n), len(missing))
            yield missing[0], missing[0] + length
            missing = missing[length:]

    def _fetch(self, connection: HTTPConnection, first: int, behind: int) -> None:
        manifest = self._part.manifest
        start, end = first * manifest.chunk_bytes, min(behind * manifest.chunk_bytes, manifest.size_bytes)
        whole = end - start == manifest.size_bytes
        headers = {"Accept-Encoding": "identity", "User-Agent": "fedkrso"}
        if not whole:
            headers["Range"] = f"bytes={start}-{end - 1}"
        connection.request("GET", self.target, headers=headers)
        response = connection.getresponse()
        if response.status != (200 if whole else 206):
            raise Wrong(f"HTTP {response.status} {response.reason}")
        if not whole and response.headers.get("Content-Range", "").split("/")[0] != f"bytes {start}-{end - 1}":
            raise Wrong("it sends another part than was asked for")
        if response.length is not None and response.length != end - start:
            raise Wrong(f"{response.length} bytes, where {end - start} are expected")
        for index in range(first, behind):
            self._store(index, response, min(manifest.chunk_bytes, end - index * manifest.chunk_bytes))
        if response.read(1):
            raise Wrong("it sends more than the object has")

    def _store(self, index: int, response: HTTPResponse, size: int) -> None:
        data, until = bytearray(), time.monotonic() + _CHUNK_SECONDS
        while len(data) < size:
            # What is there, rather than all of it: a server that sends a byte at a time is noticed.
            some = response.read1(size - len(data))
            if not some:
                raise Wrong("it ended in the middle")
            data += some
            if time.monotonic() > until:
                raise Wrong(f"too slow: {len(data)} bytes in {_CHUNK_SECONDS:.0f} s")
        self.read_bytes += size
        with self.writing:
            if self.stopped:
                raise Wrong("stopped")
            self._part.write(index, bytes(data))
