# SPDX-License-Identifier: Apache-2.0
"""One object on its way down by HTTP, chunk by chunk to the disk, in a thread of its own.

The server is not believed: what it sends lies in the same partial file that chunks from the broker would, and counts by
its hash. Nothing but the address that was given is asked for: no redirect is followed, no proxy of the environment is
used, and no more is read than the object is long. Whatever goes wrong, the chunks that came stay, and the broker brings
the rest."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from fedcore.fields.checked import clean_text
from fedcore.system.durable import is_full
from fedcore.web.origins import Origin
from fedcore.wire.files import PartialFile

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

__all__ = ["Download"]

_SILENT_SECONDS: Final = 10.0
"""Of connecting, and of each read."""
_CHUNK_SECONDS: Final = 60.0
"""A chunk that takes longer comes sooner through the broker."""


class _Wrong(Exception):
    """The server does not send what it was asked for."""


class Download:
    """Fetches what is missing of a partial file; begins at once.

    Args:
        origin: The server.
        target: Path and query there.
        part: Nobody else may touch it until `ended`, or until `stop` has returned.
        ca_file: Certificate authority of the server; the system's by default.
        woken: Called in the thread, once it has ended by itself.

    Attributes:
        origin: As given.
        ended: Whether it has; then what is missing of the file will not come this way.
        why: What went wrong, for a person; empty where nothing has.
        full: The disk is; for the agent's loop to raise.
        read_bytes: How many came.
    """

    def __init__(
        self, origin: Origin, target: str, part: PartialFile, ca_file: str | None, woken: Callable[[], None]
    ) -> None:
        self.origin, self._target, self._part, self._ca_file, self._woken = origin, target, part, ca_file, woken
        self.ended, self.why, self.read_bytes = False, "", 0
        self.full: OSError | None = None
        self._stopped, self._writing = False, threading.Lock()
        self._connection: HTTPConnection | None = None
        threading.Thread(target=self._run, name="download", daemon=True).start()

    def stop(self) -> None:
        """Write nothing any more, from now on."""
        with self._writing:
            self._stopped = True
        connection = self._connection
        if connection is not None and connection.sock is not None:
            # A read that waits ends at once.
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        from http.client import HTTPException

        try:
            # Here and not at the top: agents that fetch nothing so do not load it.
            self._connection = self._connect()
            with contextlib.closing(self._connection):
                for first, behind in self._gaps():
                    self._fetch(self._connection, first, behind)
        except OSError as error:
            self.full = error if is_full(error) else None
            self.why = clean_text(f"{error.strerror or error or type(error).__name__}")
        except (_Wrong, HTTPException, ValueError) as error:
            self.why = clean_text(f"{error}" or type(error).__name__)
        self.ended = True
        if not self._stopped:
            self._woken()

    def _connect(self) -> HTTPConnection:
        from http.client import HTTPConnection, HTTPSConnection

        origin = self.origin
        if origin.scheme == "http":
            return HTTPConnection(origin.host, origin.port, timeout=_SILENT_SECONDS)
        import ssl

        context = ssl.create_default_context(cafile=self._ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return HTTPSConnection(origin.host, origin.port, timeout=_SILENT_SECONDS, context=context)

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
        connection.request("GET", self._target, headers=headers)
        response = connection.getresponse()
        if response.status != (200 if whole else 206):
            raise _Wrong(f"HTTP {response.status} {response.reason}")
        if not whole and response.headers.get("Content-Range", "").split("/")[0] != f"bytes {start}-{end - 1}":
            raise _Wrong("it sends another part than was asked for")
        if response.length is not None and response.length != end - start:
            raise _Wrong(f"{response.length} bytes, where {end - start} are expected")
        for index in range(first, behind):
            self._store(index, response, min(manifest.chunk_bytes, end - index * manifest.chunk_bytes))
        if response.read(1):
            raise _Wrong("it sends more than the object has")

    def _store(self, index: int, response: HTTPResponse, size: int) -> None:
        data, until = bytearray(), time.monotonic() + _CHUNK_SECONDS
        while len(data) < size:
            # What is there, rather than all of it: a server that sends a byte at a time is noticed.
            some = response.read1(size - len(data))
            if not some:
                raise _Wrong("it ended in the middle")
            data += some
            if time.monotonic() > until:
                raise _Wrong(f"too slow: {len(data)} bytes in {_CHUNK_SECONDS:.0f} s")
        self.read_bytes += size
        with self._writing:
            if self._stopped:
                raise _Wrong("stopped")
            self._part.write(index, bytes(data))
