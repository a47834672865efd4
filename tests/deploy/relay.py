# SPDX-License-Identifier: Apache-2.0
"""A TCP relay that knows nothing of what it carries, so that encrypted links can be cut and restored."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType

__all__ = ["Relay"]


class Relay:
    """A running relay on a free loopback port; use it as a context manager.

    Args:
        target_port: The loopback port behind it; it may come and go.

    Attributes:
        port: Where it listens.
        links: How many connections there were.
    """

    def __init__(self, target_port: int) -> None:
        self.port = self.links = 0
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()
        assert self._ready.wait(10.0)

    def cut(self) -> None:
        """Reset every connection and refuse new ones until `restore`.

        It does not take them and hang up: mosquitto 2.0.11 can spin for ever in a bridge whose connections end within
            the TLS handshake."""
        self._do(self._cut())

    def restore(self) -> None:
        """Take connections again, on the same port."""
        self._do(self._listen())

    def stop(self) -> None:
        """End every connection and listen no more."""
        if self._thread.is_alive():
            self._do(self._end())
            self._thread.join(10.0)

    def __enter__(self) -> Relay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _do(self, what: Coroutine[None, None, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(10.0)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        await self._listen()
        self._ready.set()
        await self._over.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _cut(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _end(self) -> None:
        await self._cut()
        self._over.set()

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._connection(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            self.links += 1
            from_target, target = await asyncio.open_connection("127.0.0.1", self._target_port)
            ends.append(target)
            self._writers.update(ends)
            await asyncio.gather(self._pump(reader, target), self._pump(from_target, writer))
        except OSError:
            # One side went away; so does the other.
            pass
        finally:
            for end in ends:
                self._writers.discard(end)
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError
