# SPDX-License-Identifier: Apache-2.0
"""Brokers as services have them: a mosquitto with their published limits, and before it a proxy for what mosquitto
cannot be told to limit. Where the figures come from stands in docs/details/brokers.md.

What is above a rate is swallowed and acknowledged to nobody, as AWS IoT Core does; whatever else is above a limit ends
the link."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from proxy import _Lane, _number, _Packet, _read

from benchmarks.mosquitto import Mosquitto

__all__ = ["AWS_IOT_CORE", "EVENT_GRID", "SMALLEST", "Managed", "Service"]

_CONNECT, _PUBLISH, _SUBSCRIBE = 1, 3, 8
_NO_ID = b"\x20\x03\x00\x85\x00"
"""CONNACK of version 5: client id not valid."""


@dataclass(frozen=True)
class Service:
    """A service's limits; 0 for none.

    Attributes:
        lines: What of them mosquitto can be told.
        settings: Lines of `[broker]` that docs/details/brokers.md gives for it.
        messages_per_second, bytes_per_second: Of each connection, from the client.
        slashes, topic_bytes: Of a topic or a filter.
        client_id_bytes: Longest client id.
        filters, subscriptions: In one request; of one connection.
        retained_bytes: Largest payload that may be retained.
    """

    lines: tuple[str, ...]
    settings: str = ""
    messages_per_second: int = 0
    bytes_per_second: int = 0
    slashes: int = 0
    topic_bytes: int = 0
    client_id_bytes: int = 0
    filters: int = 0
    subscriptions: int = 0
    retained_bytes: int = 0


AWS_IOT_CORE = Service(
    lines=("max_packet_size 131072", "max_qos 1", "max_inflight_messages 100", "max_keepalive 1200"),
    settings="messages_per_second = 80\nbytes_per_second = 350_000\n",
    messages_per_second=100,
    bytes_per_second=524_288,
    slashes=7,
    topic_bytes=256,
    client_id_bytes=128,
    filters=8,
    subscriptions=50,
)
EVENT_GRID = Service(
    lines=(
        "max_packet_size 524288",
        "max_qos 1",
        "retain_available false",
        "max_queued_messages 100",
        "max_queued_bytes 1048576",
    ),
    settings="messages_per_second = 800\nbytes_per_second = 700_000\n",
    messages_per_second=1000,
    bytes_per_second=1_048_576,
    client_id_bytes=128,
)
SMALLEST = Service(
    lines=("max_packet_size 65536", "max_qos 0"),
    settings="messages_per_second = 20\n",
    messages_per_second=25,
    slashes=8,
    client_id_bytes=23,
    retained_bytes=32_768,
)
"""No service's, but the least of each that one was found to have."""


class Managed:
    """A running broker with a service's limits; use it as a context manager.

    Args:
        folder: For the broker's files.
        service: Whose limits.

    Attributes:
        broken: How often each limit was.
    """

    def __init__(self, folder: Path, service: Service) -> None:
        self.service = service
        self.broken: Counter[str] = Counter()
        self.port = 0
        self._broker = Mosquitto(folder, *service.lines)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="managed", daemon=True)
        self._thread.start()
        assert self._ready.wait(60.0)

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def sections(self, user: str) -> str:
        """The `[broker]` section of a user's file."""
        return f'[broker]\nurl = "{self.url}"\ninsecure = true\nusername = "{user}"\n{self.service.settings}'

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join(10.0)
        self._broker.stop()

    def __enter__(self) -> Managed:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_broker, broker = await asyncio.open_connection(*self._broker.address)
        down = asyncio.ensure_future(_copy(from_broker, writer))
        try:
            await self._up(reader, _Lane(broker, None), writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            down.cancel()
            for side in (writer, broker):
                side.transport.abort()

    async def _up(self, reader: asyncio.StreamReader, lane: _Lane, client: asyncio.StreamWriter) -> None:
        """Send on what a client sends, until it breaks a limit that costs the link."""
        service, subscriptions, level = self.service, 0, 0
        rate = _Rate(service.messages_per_second, service.bytes_per_second)
        while True:
            packet = await _read(reader)
            if packet.kind == _CONNECT:
                level = packet.data[packet.body + 2 + int.from_bytes(packet.data[packet.body : packet.body + 2], "big")]
                if self._breaks("client_id_bytes", len(packet.client_id)):
                    client.write(_NO_ID)
                    await client.drain()
                    return
            elif packet.kind == _SUBSCRIBE:
                filters = list(_filters(packet, level))
                subscriptions += len(filters)
                sizes = [self._breaks("filters", len(filters)), self._breaks("subscriptions", subscriptions)]
                if any([*sizes, *(self._topic(topic) for topic in filters)]):
                    return
            elif packet.kind == _PUBLISH:
                if self._topic(packet.topic):
                    return
                if packet.data[0] & 1 and self._breaks("retained_bytes", len(packet.data)):
                    return
                if not rate.takes(len(packet.data), time.monotonic()):
                    self.broken["rate"] += 1
                    continue
            await lane.send(packet.data)

    def _topic(self, topic: str) -> bool:
        return self._breaks("slashes", topic.count("/")) or self._breaks("topic_bytes", len(topic.encode()))

    def _breaks(self, limit: str, size: int) -> bool:
        most: int = getattr(self.service, limit)
        broken = bool(most) and size > most
        self.broken[limit] += broken
        return broken


class _Rate:
    """No second, wherever it begins, has more messages or bytes than these; 0 for no limit."""

    def __init__(self, messages: int, size_bytes: int) -> None:
        self._messages, self._bytes = messages, size_bytes
        self._sent: deque[tuple[float, int]] = deque()

    def takes(self, size_bytes: int, now: float) -> bool:
        while self._sent and self._sent[0][0] <= now - 1.0:
            self._sent.popleft()
        total = sum(size for _, size in self._sent) + size_bytes
        if (self._messages and len(self._sent) >= self._messages) or (self._bytes and total > self._bytes):
            return False
        self._sent.append((now, size_bytes))
        return True


def _filters(packet: _Packet, level: int) -> Iterator[str]:
    at = packet.body + 2
    if level >= 5:
        length, at = _number(packet.data, at)
        at += length
    while at < len(packet.data):
        length = int.from_bytes(packet.data[at : at + 2], "big")
        yield packet.data[at + 2 : at + 2 + length].decode()
        at += 2 + length + 1


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.transport.abort()
