# SPDX-License-Identifier: Apache-2.0
"""Both ends of a message and of a transfer on a real broker: bare paho for the facts, our own transport for what we
make of them."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from benchmarks.mosquitto import Mosquitto
from coordinator.messages.inbox import Inbox
from fedcore.transport.base import Message, Received
from fedcore.transport.mqtt import MqttSettings, MqttTransport
from fedcore.wire.actions import Done, Send, SendChunk, Store, Verify
from fedcore.wire.codec import decode, encode
from fedcore.wire.files import PartialFile, manifest_of, read_chunk
from fedcore.wire.gather import Gather
from fedcore.wire.messages import Ack, Chunk, Commit, Envelope, Grant, Missing, Offer, Refuse, Topics
from fedcore.wire.transfer import Sender

V3, V5 = MQTTProtocolVersion.MQTTv311, MQTTProtocolVersion.MQTTv5
CHUNK_BYTES = 16_384
TOPICS = Topics("facts")


class Plain:
    """A bare paho client and what happened to it; `busy` holds its network thread inside the message callback."""

    def __init__(self, broker: Mosquitto, name: str, protocol: MQTTProtocolVersion = V5) -> None:
        self.happened: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self.idle = threading.Event()
        self.idle.set()
        options: dict[str, Any] = {} if protocol == V5 else {"clean_session": False}
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=name, protocol=protocol, reconnect_on_failure=False, **options
        )
        self.client.on_connect = lambda c, u, f, reason, p: self.happened.put(
            ("connected", getattr(p, "MaximumPacketSize", None))
        )
        self.client.on_subscribe = lambda c, u, mid, reasons, p: self.happened.put(("subscribed",))
        self.client.on_publish = lambda c, u, mid, reason, p: self.happened.put(("acknowledged", not reason.is_failure))
        self.client.on_disconnect = lambda c, u, f, reason, p: self.happened.put(("disconnected", str(reason)))
        self.client.on_message = self._received
        if protocol == V5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = 600
            self.client.connect(*broker.address, clean_start=False, properties=properties)
        else:
            self.client.connect(*broker.address)
        self.client.loop_start()

    def _received(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        self.idle.wait(120)
        self.happened.put(("received", message.payload))

    def next(self, seconds: float = 120.0) -> tuple[Any, ...]:
        return self.happened.get(timeout=seconds)

    def subscribe(self, topic: str) -> None:
        self.client.subscribe(topic, qos=1)
        while self.next()[0] != "subscribed":
            pass

    def rest(self, seconds: float = 0.4) -> list[tuple[Any, ...]]:
        """All that happens until nothing has happened for a while."""
        out = []
        while True:
            try:
                out.append(self.happened.get(timeout=seconds))
            except queue.Empty:
                return out

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


class Side:
    """One end of a transfer over the real transport; its sink may be slow, as a busy machine is."""

    def __init__(self, broker: Mosquitto, name: str, *filters: str, seconds_a_message: float = 0.0) -> None:
        self.name = name
        self.events: queue.Queue[Any] = queue.Queue()
        self.transport = MqttTransport(MqttSettings(broker.url, name), random.Random(name))
        for topic in filters:
            self.transport.subscribe(topic)

        def sink(event: Any) -> None:
            time.sleep(seconds_a_message if isinstance(event, Received) else 0.0)
            self.events.put(event)

        self.transport.start(sink)
        self.transport.wait_connected(60)

    def send(self, topic: str, body: Any, *, retain: bool = False) -> bool:
        return self.transport.publish(
            Message(topic, encode(Envelope(run="facts", round=1, node=self.name, body=body)), retain)
        )

    def arrived(self, seconds: float = 0.02) -> Iterator[Envelope]:
        """What has come since the last call."""
        try:
            event = self.events.get(timeout=seconds)
            while True:
                if isinstance(event, Received) and event.payload:
                    yield decode(event.payload)
                event = self.events.get_nowait()
        except queue.Empty:
            return


def a_file(path: Path, chunks: int, chunk_bytes: int = CHUNK_BYTES) -> Path:
    path.write_bytes(random.Random(path.name).randbytes(chunks * chunk_bytes - 7))
    return path


def upload(nodes: list[Side], coordinator: Side, path: Path, into: Path, seconds: float = 120.0) -> int:
    """Send a file as nodes do, all at once, and take it as the coordinator does; returns how many chunks the broker was
    given."""
    manifest = manifest_of(path, CHUNK_BYTES)
    senders = {node.name: Sender("1-t", manifest, resend_seconds=0.3) for node in nodes}

    def answer(name: str, body: Grant | Ack | Commit | Refuse) -> None:
        coordinator.send(TOPICS.down(name, "x"), body)

    inbox = Inbox(lambda name, offer, file: "", answer)
    chunks, deadline = 0, time.monotonic() + seconds
    while not all(sender.finished for sender in senders.values()):
        now = time.monotonic()
        assert now < deadline, "the transfers did not end"
        for node in nodes:
            sender = senders[node.name]
            actions = sender.tick(now)
            for envelope in node.arrived(0.001):
                if isinstance(envelope.body, Grant | Ack | Commit | Refuse):
                    actions += sender.handle(envelope.body, now)
            for action in actions:
                match action:
                    case Send(Offer() as offer):
                        node.send(TOPICS.up(node.name, "offer"), offer)
                    case SendChunk(index):
                        chunks += node.send(
                            TOPICS.up(node.name, "chunk"), read_chunk(path, sender.transfer, index, CHUNK_BYTES)
                        )
        for envelope in coordinator.arrived(0.001):
            if isinstance(envelope.body, Offer):
                inbox.offer(envelope.node, envelope.body, into / envelope.node, now)
            elif isinstance(envelope.body, Chunk):
                inbox.chunk(envelope.node, envelope.body, now)
    assert all((into / node.name).read_bytes() == path.read_bytes() for node in nodes)
    return chunks


def download(node: Side, coordinator: Side, path: Path, into: Path, seconds: float = 120.0) -> int:
    """Take a published file as a node does; returns how often it asked for what was missing."""
    manifest = manifest_of(path, CHUNK_BYTES)
    part = PartialFile(into, manifest)
    gather = Gather(manifest, b"", time.monotonic(), random.Random(0), patience_seconds=0.3)
    node.transport.subscribe(TOPICS.published_state("o", "+"))
    asked, deadline = 0, time.monotonic() + seconds
    while not gather.finished:
        now = time.monotonic()
        assert now < deadline, "the object did not become whole"
        actions = gather.tick(now)
        for envelope in node.arrived():
            if isinstance(envelope.body, Chunk):
                actions += gather.handle(envelope.body, now)
        for action in actions:
            match action:
                case Send(Missing() as missing):
                    asked += 1
                    node.send(TOPICS.up(node.name, "missing"), missing)
                case Store(index, data):
                    part.write(index, data)
                case Verify():
                    assert gather.verified(part.finish()) == [Done()]
        for envelope in coordinator.arrived():
            if isinstance(envelope.body, Missing):
                for index in envelope.body.indices:
                    coordinator.send(
                        TOPICS.down(envelope.node, "chunk"), read_chunk(path, manifest.sha256, index, CHUNK_BYTES)
                    )
    assert into.read_bytes() == path.read_bytes()
    return asked
