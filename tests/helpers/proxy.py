# SPDX-License-Identifier: Apache-2.0
"""A scripted proxy between MQTT clients and a real broker: it loses, repeats, reorders, delays and jams PUBLISH packets,
cuts and slows links.

It understands the framing of MQTT 3.1.1 and 5 and no more. Everything but PUBLISH passes. A PUBLISH with QoS 1 that is
lost is acknowledged to its sender, as a broker does whose queue is full: that is the fault that only end-to-end
acknowledgements survive.

What happens to a packet is drawn from (seed, client, number of its connection, direction): the same script and the same
order of arrival give the same faults."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Literal

__all__ = ["Faults", "Proxy", "Script"]

Direction = Literal["up", "down"]
_CONNECT, _PUBLISH = 1, 3
_FAULTS = ("drop", "duplicate", "reorder", "delay", "cut", "tear", "jam")
# A packet that is held back goes out after the next one, or at the latest after this.
_HELD_SECONDS = 0.4
_SLICES_PER_SECOND = 20


@dataclass(frozen=True)
class Faults:
    """What happens to one direction: the chances of each fault per PUBLISH, and the speed of the link.

    Attributes:
        drop: It is acknowledged and never arrives.
        duplicate: It arrives twice.
        reorder: It is held back until after the next one.
        delay: The direction stands still for up to `delay_seconds` before it goes on.
        cut: Both sides lose the connection before it.
        tear: Half of it arrives, then both sides lose the connection.
        jam: One bit of its second half, which is payload, arrives as the other one.
        bytes_per_second: Speed of each client's link; None for no limit.
        topics: Only packets are touched whose topic has one of these as a part.
    """

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay: float = 0.0
    cut: float = 0.0
    tear: float = 0.0
    jam: float = 0.0
    delay_seconds: float = 0.3
    bytes_per_second: float | None = None
    topics: tuple[str, ...] = ("",)

    def draw(self, topic: str, chance: Random) -> str:
        """The fault of the next packet, or an empty string."""
        if not any(part in topic for part in self.topics):
            return ""
        x = chance.random()
        for fault in _FAULTS:
            x -= getattr(self, fault)
            if x < 0:
                return fault
        return ""


@dataclass(frozen=True)
class Script:
    """Faults of both directions, drawn from a seed."""

    seed: int = 0
    up: Faults = Faults()
    down: Faults = Faults()


@dataclass(frozen=True)
class _Packet:
    """One MQTT control packet, whole."""

    data: bytes
    body: int
    """Where its variable header starts."""

    @property
    def kind(self) -> int:
        return self.data[0] >> 4

    @property
    def qos(self) -> int:
        return self.data[0] >> 1 & 3

    @property
    def topic(self) -> str:
        return self._text(self.body)

    @property
    def packet_id(self) -> bytes:
        start = self.body + 2 + int.from_bytes(self.data[self.body : self.body + 2], "big")
        return self.data[start : start + 2]

    @property
    def client_id(self) -> str:
        """Of a CONNECT: after protocol name, level, flags, keepalive, and in MQTT 5 the properties."""
        at = self.body + 2 + int.from_bytes(self.data[self.body : self.body + 2], "big")
        level, at = self.data[at], at + 4
        if level >= 5:
            length, at = _number(self.data, at)
            at += length
        return self._text(at)

    def again(self) -> bytes:
        """The packet as it is sent a second time: with the DUP flag where there is one."""
        return bytes([self.data[0] | (8 if self.qos else 0)]) + self.data[1:]

    def jammed(self, chance: Random) -> bytes:
        """The packet with one bit wrong."""
        data = bytearray(self.data)
        data[chance.randrange(len(data) // 2, len(data))] ^= 1 << chance.randrange(8)
        return bytes(data)

    def _text(self, at: int) -> str:
        length = int.from_bytes(self.data[at : at + 2], "big")
        return self.data[at + 2 : at + 2 + length].decode()


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A variable byte integer and where it ends."""
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


async def _read(reader: asyncio.StreamReader) -> _Packet:
    head = await reader.readexactly(2)
    while head[-1] >= 128:
        head += await reader.readexactly(1)
    return _Packet(head + await reader.readexactly(_number(head, 1)[0]), len(head))


class _Lane:
    """One direction of one connection: packets go out whole, one after the other, no faster than the link."""

    def __init__(self, writer: asyncio.StreamWriter, bytes_per_second: float | None) -> None:
        self._writer, self._speed = writer, bytes_per_second
        self._turn = asyncio.Lock()
        if bytes_per_second is not None:
            # What counts as sent has left, so that a slow link pushes back on its sender.
            writer.transport.set_write_buffer_limits(high=0)

    async def send(self, data: bytes) -> None:
        async with self._turn:
            step = len(data) if self._speed is None else max(64, int(self._speed / _SLICES_PER_SECOND))
            for start in range(0, len(data), max(1, step)):
                part = data[start : start + step]
                self._writer.write(part)
                await self._writer.drain()
                if self._speed is not None:
                    await asyncio.sleep(len(part) / self._speed)

    def abort(self) -> None:
        self._writer.transport.abort()


class _Link:
    """One client's connection and the proxy's own to the broker."""

    def __init__(self, proxy: Proxy, client: asyncio.StreamWriter, broker: asyncio.StreamWriter) -> None:
        self._proxy, self._script = proxy, proxy.script
        self.lanes: dict[Direction, _Lane] = {
            "up": _Lane(broker, proxy.script.up.bytes_per_second),
            "down": _Lane(client, proxy.script.down.bytes_per_second),
        }
        self._held: dict[Direction, bytes] = {}
        self._flushes: set[asyncio.Task[None]] = set()

    async def serve(self, from_client: asyncio.StreamReader, from_broker: asyncio.StreamReader) -> None:
        first = await _read(from_client)
        name = first.client_id if first.kind == _CONNECT else ""
        self._proxy.connections[name] += 1
        await self.lanes["up"].send(first.data)
        where = f"{self._script.seed}/{name}/{self._proxy.connections[name]}"
        pumps = [
            asyncio.ensure_future(self._pump("up", from_client, Random(f"{where}/up"))),
            asyncio.ensure_future(self._pump("down", from_broker, Random(f"{where}/down"))),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            tasks = [*pumps, *self._flushes]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(self, direction: Direction, reader: asyncio.StreamReader, chance: Random) -> None:
        lane = self.lanes[direction]
        while True:
            packet = await _read(reader)
            if packet.kind != _PUBLISH:
                await lane.send(packet.data)
            elif await self._publish(direction, packet, chance):
                return

    async def _publish(self, direction: Direction, packet: _Packet, chance: Random) -> bool:
        """Send a PUBLISH on, or not; whether the link is to be cut."""
        lane, counts, topic = self.lanes[direction], self._proxy.counts, packet.topic
        faults = self._script.up if direction == "up" else self._script.down
        fault = faults.draw(topic, chance) if packet.qos < 2 else ""
        counts[fault or "pass"] += 1
        if fault == "drop":
            if packet.qos:
                await self.lanes["down" if direction == "up" else "up"].send(b"\x40\x02" + packet.packet_id)
            return False
        if fault == "cut":
            return True
        if fault == "tear":
            await lane.send(packet.data[: len(packet.data) // 2])
            return True
        self._proxy.passed[direction, topic] += len(packet.data)
        if fault == "reorder" and direction not in self._held:
            self._held[direction] = packet.data
            self._flushes.add(asyncio.ensure_future(self._flush(direction, _HELD_SECONDS)))
            return False
        if fault == "delay":
            await asyncio.sleep(chance.uniform(0.0, faults.delay_seconds))
        await lane.send(packet.jammed(chance) if fault == "jam" else packet.data)
        if fault == "duplicate":
            self._proxy.passed[direction, topic] += len(packet.data)
            await lane.send(packet.again())
        await self._flush(direction, 0.0)
        return False

    async def _flush(self, direction: Direction, seconds: float) -> None:
        """Let go what is held back."""
        if seconds:
            await asyncio.sleep(seconds)
        held = self._held.pop(direction, None)
        if held is not None:
            await self.lanes[direction].send(held)

    def abort(self) -> None:
        for lane in self.lanes.values():
            lane.abort()


class Proxy:
    """A running proxy on a free loopback port; use it as a context manager.

    Args:
        broker_port: Where the broker listens; it may come and go.
        script: What goes wrong.

    Attributes:
        counts: PUBLISH packets by fault, and those that passed under "pass".
        passed: Bytes of PUBLISH packets that went through, by (direction, topic).
        connections: Connections by client id.
    """

    def __init__(self, broker_port: int, script: Script) -> None:
        self.script = script
        self.counts: Counter[str] = Counter()
        self.passed: Counter[tuple[Direction, str]] = Counter()
        self.connections: Counter[str] = Counter()
        self.port = 0
        self._broker_port = broker_port
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()
        assert self._ready.wait(10.0)

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def bytes_passed(self, direction: Direction, text: str) -> int:
        """Bytes of PUBLISH packets through the proxy whose topic contains a text."""
        return sum(size for (way, topic), size in list(self.passed.items()) if way == direction and text in topic)

    def cut_all(self) -> None:
        """Cut every connection now."""
        for link in list(self._links):
            self._loop.call_soon_threadsafe(link.abort)

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join(10.0)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._connection(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_broker, broker = await asyncio.open_connection("127.0.0.1", self._broker_port)
        except OSError:
            # No broker: whoever came is sent away.
            writer.transport.abort()
            return
        link = _Link(self, writer, broker)
        self._links.add(link)
        try:
            await link.serve(reader, from_broker)
        except (OSError, asyncio.IncompleteReadError):
            # One side went away; so does the other.
            pass
        finally:
            self._links.discard(link)
            link.abort()
