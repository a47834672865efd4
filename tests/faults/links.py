# SPDX-License-Identifier: Apache-2.0
"""Both ends of a transfer with a real broker and a bad link between: the node's side (`Transfers`, outbox, inbox) reaches
mosquitto through the proxy, the coordinator's side (`Inbox`, `Publisher`) sits at the broker."""

from __future__ import annotations

import contextlib
import queue
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from proxy import Proxy, Script

from coordinator.messages.inbox import Inbox
from coordinator.messages.publisher import Publisher
from coordinator.provisioning.broker import LocalBroker
from coordinator.store.folder import RunFolder
from edge_client.agent.messages import Messages
from edge_client.agent.outbox import Outbox
from edge_client.agent.transfers import Transfers
from edge_client.node import Node
from fedcore.config.sections import BrokerSection, DataSection
from fedcore.errors import WireError
from fedcore.round.plan import StateObject
from fedcore.transport.base import Connected, Received
from fedcore.transport.mqtt import MqttSettings, MqttTransport
from fedcore.wire.codec import decode
from fedcore.wire.files import manifest_of
from fedcore.wire.messages import Ack, Chunk, Commit, Grant, Missing, Offer, Refuse, Topics
from fedcore.wire.post import Post

__all__ = ["ENVELOPE_BYTES", "RUN", "TOPICS", "WINDOW", "CoordinatorSide", "Link", "NodeSide"]

RUN, TOPICS = "links", Topics("links")
# An envelope and a topic are small beside a chunk; so are the acknowledgements.
ENVELOPE_BYTES = 400
WINDOW = 8


class NodeSide:
    """A node's transfers, as its agent drives them."""

    def __init__(self, folder: Path, settings: MqttSettings) -> None:
        self.events: queue.Queue[Any] = queue.Queue()
        self.fetched: list[str] = []
        self.gone: list[tuple[int, str]] = []
        data, section = DataSection(source="none"), BrokerSection(url=settings.url, insecure=True)
        node = Node(node="n", run=RUN, model_folder="none", data=data, broker=section)
        self.outbox = Outbox(folder / "outbox")
        self.transport = MqttTransport(settings, random.Random(1))
        self.messages = Messages(node, folder, self.transport)
        self.transfers = Transfers(
            self.outbox,
            folder / "inbox",
            self.transport,
            self.messages,
            random.Random(1),
            self.fetched.append,
            lambda *gone: self.gone.append(gone),
        )
        self.messages.subscribe()
        self.transport.start(self.events.put)
        self.transport.wait_connected(60)

    def turn(self) -> None:
        try:
            event = self.events.get(timeout=0.02)
        except queue.Empty:
            event = None
        if isinstance(event, Connected):
            self.transfers.link_came(event.limits)
        elif isinstance(event, Received) and event.payload:
            body = self.messages.open(event.topic, event.payload)
            if isinstance(body, Grant | Ack | Commit | Refuse | Chunk):
                self.transfers.handle(body, time.monotonic())
        self.transfers.tick(time.monotonic())

    def kill(self) -> None:
        self.transport.abandon()
        self.transfers.pause()


class CoordinatorSide:
    """Takes updates and publishes an object, as a coordinator does."""

    def __init__(self, folder: Path, settings: MqttSettings) -> None:
        self.folder = RunFolder(folder)
        self.events: queue.Queue[Any] = queue.Queue()
        self.committed: list[Path] = []
        self.objects: dict[Any, StateObject] = {}
        self.transport = MqttTransport(settings, random.Random(2))
        self.publisher = Publisher(self.transport, Post(RUN, "", None, 1), TOPICS, self.folder, 2, lambda: 1)
        self.inbox = Inbox(self._accept, lambda node, body: self.publisher.reply(node, 1, body), window=WINDOW)
        self.transport.subscribe(TOPICS.up("+", "#"))
        self.transport.start(self.events.put)
        self.transport.wait_connected(60)

    def _accept(self, node: str, offer: Offer, path: Path) -> str:
        self.committed.append(path)
        return ""

    def publish(self, size_bytes: int, chunk_bytes: int) -> StateObject:
        path = self.folder.published_state(1, "whole")
        path.parent.mkdir(parents=True)
        path.write_bytes(random.Random("published_state").randbytes(size_bytes))
        obj = StateObject(1, 0, None, "0" * 64, manifest_of(path, chunk_bytes))
        # The first connection is no reason to publish again.
        self.turn()
        self.objects[1, "whole"] = obj
        self.publisher.published_state(1, self.objects)
        return obj

    def turn(self) -> None:
        while not self.events.empty():
            event = self.events.get()
            if isinstance(event, Connected) and self.objects:
                self.publisher.published_state(1, self.objects)
            elif isinstance(event, Received) and event.payload:
                body, now = self._opened(event.payload), time.monotonic()
                if isinstance(body, Offer):
                    self.inbox.offer("n", body, self.folder.update(1, "n"), now)
                elif isinstance(body, Chunk):
                    self.inbox.chunk("n", body, now)
                elif isinstance(body, Missing):
                    self.publisher.repair("n", body.sha256, body.indices, self.objects)

    @staticmethod
    def _opened(payload: bytes) -> Any:
        with contextlib.suppress(WireError):  # The gate throws it away.
            return decode(payload).body

    def kill(self) -> None:
        self.transport.abandon()
        for _, _, part in self.inbox._open.values():
            part.abandon()


class Link:
    """A broker, the proxy before it, and both sides."""

    def __init__(self, folder: Path, script: Script, *, persistence: bool = False) -> None:
        self.folder = folder
        self.broker = LocalBroker(folder / "broker", ("coordinator", "n"), kind="mosquitto", persistence=persistence)
        self.proxy = Proxy(self.broker.port, script)
        self.coordinator = self._coordinator()
        self.node = self._node()

    def _coordinator(self) -> CoordinatorSide:
        return CoordinatorSide(self.folder / "run", self.broker.settings("coordinator", "coordinator"))

    def _node(self) -> NodeSide:
        return NodeSide(self.folder / "node", MqttSettings(self.proxy.url, "n", "n", self.broker.passwords["n"]))

    def restart_node(self) -> None:
        """As after a kill: nothing is said, nothing is saved."""
        self.node.kill()
        self.node = self._node()

    def restart_coordinator(self) -> None:
        """The same."""
        self.coordinator.kill()
        self.coordinator = self._coordinator()

    def send(self, size_bytes: int, chunk_bytes: int) -> None:
        self.node.outbox.path(1).write_bytes(random.Random("update").randbytes(size_bytes))
        self.node.transfers.send(1, chunk_bytes, time.monotonic())

    def turn_until(self, done: Callable[[], bool], seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, f"no end: {dict(self.proxy.counts)}, {dict(self.proxy.passed)}"
            self.node.turn()
            self.coordinator.turn()

    @property
    def up_bytes(self) -> int:
        return self.proxy.bytes_passed("up", "/up/chunk")

    @property
    def down_bytes(self) -> int:
        return self.proxy.bytes_passed("down", "/state/") + self.proxy.bytes_passed("down", "/down/chunk")

    def close(self) -> None:
        self.node.kill()
        self.coordinator.kill()
        self.proxy.stop()
        self.broker.stop()
