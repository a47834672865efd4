# SPDX-License-Identifier: Apache-2.0
"""Whole transfers in both directions over bad links: slow, cut, repeating, reordering, losing, and with a broker that
is killed.

The node's side (`Transfers`, outbox, inbox) reaches a real mosquitto through the proxy; the coordinator's side
(`Inbox`, `Publisher`) sits at the broker."""

from __future__ import annotations

import queue
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import needs_mosquitto
from proxy import Faults, Proxy, Script

import fedcore.transport.mqtt as mqtt
from coordinator.messages.inbox import Inbox
from coordinator.messages.probe import usable_chunk_bytes
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
from fedcore.transport.base import Connected, Limits, Received
from fedcore.transport.mqtt import MqttSettings, MqttTransport
from fedcore.wire.codec import decode
from fedcore.wire.files import manifest_of
from fedcore.wire.messages import Ack, Chunk, Commit, Grant, Missing, Offer, Refuse, Topics
from fedcore.wire.post import Post

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
        section = BrokerSection(url=settings.url, insecure=True)
        node = Node(node="n", run=RUN, model_folder="none", data=DataSection(source="none"), broker=section)
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
                try:
                    body, now = decode(event.payload).body, time.monotonic()
                except WireError:
                    continue  # As the gate does.
                if isinstance(body, Offer):
                    self.inbox.offer("n", body, self.folder.update(1, "n"), now)
                elif isinstance(body, Chunk):
                    self.inbox.chunk("n", body, now)
                elif isinstance(body, Missing):
                    self.publisher.repair("n", body.sha256, body.indices, self.objects)

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
        settings = MqttSettings(self.proxy.url, "n", "n", self.broker.passwords["n"])
        return NodeSide(self.folder / "node", settings)

    def restart_node(self) -> None:
        """As after a kill: nothing is said, nothing is saved."""
        self.node.kill()
        self.node = self._node()

    def restart_coordinator(self) -> None:
        """The same."""
        self.coordinator.kill()
        self.coordinator = self._coordinator()

    def send(self, size_bytes: int, chunk_bytes: int) -> Path:
        path = self.node.outbox.path(1)
        path.write_bytes(random.Random("update").randbytes(size_bytes))
        self.node.transfers.send(1, chunk_bytes, time.monotonic())
        return path

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


@pytest.fixture
def make_link(tmp_path: Path) -> Iterator[Callable[..., Link]]:
    needs_mosquitto()
    made: list[Link] = []

    def make(script: Script, **options: bool) -> Link:
        made.append(Link(tmp_path, script, **options))
        return made[-1]

    yield make
    for link in made:
        link.close()


def both_ways(link: Link, size_bytes: int, chunk_bytes: int) -> Callable[[], bool]:
    """Begin a transfer in each direction; whether both are whole."""
    link.send(size_bytes, chunk_bytes)
    obj = link.coordinator.publish(size_bytes, chunk_bytes)
    link.node.transfers.fetch(obj, time.monotonic())
    return lambda: bool(link.node.gone and link.node.fetched)


def check(link: Link, size_bytes: int) -> None:
    assert link.node.gone == [(1, "")] and len(link.coordinator.committed) == 1
    assert link.coordinator.committed[0].read_bytes() == random.Random("update").randbytes(size_bytes)
    [obj] = link.coordinator.objects.values()
    assert link.node.transfers.object_path(obj).read_bytes() == random.Random("published_state").randbytes(size_bytes)


# A chunk takes more than two seconds: longer than any timer's first pause.
SLOW, SLOW_SIZE, SLOW_CHUNK = Faults(bytes_per_second=90_000), 450_000, 200_000


def test_a_slow_uplink_with_a_short_keepalive_times_nothing_out(
    make_link: Callable[..., Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "_KEEPALIVE_SECONDS", 3)
    link = make_link(Script(up=SLOW))
    link.send(SLOW_SIZE, SLOW_CHUNK)
    link.turn_until(lambda: bool(link.node.gone))
    assert link.coordinator.committed[0].read_bytes() == random.Random("update").randbytes(SLOW_SIZE)
    assert link.proxy.connections["n"] == 1, "the link was given up while it made progress"
    assert link.up_bytes <= SLOW_SIZE + 9 * ENVELOPE_BYTES, "chunks were sent twice on suspicion"


def test_a_slow_downlink_with_a_short_keepalive_times_nothing_out(
    make_link: Callable[..., Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "_KEEPALIVE_SECONDS", 3)
    link = make_link(Script(down=SLOW))
    obj = link.coordinator.publish(SLOW_SIZE, SLOW_CHUNK)
    link.node.transfers.fetch(obj, time.monotonic())
    link.turn_until(lambda: bool(link.node.fetched))
    assert link.node.transfers.object_path(obj).read_bytes() == random.Random("published_state").randbytes(SLOW_SIZE)
    assert link.proxy.connections["n"] == 1, "the link was given up while it made progress"
    # Requests that come before the speed of the link is known ask for one chunk each.
    assert link.down_bytes <= SLOW_SIZE + 2 * SLOW_CHUNK + 6 * ENVELOPE_BYTES


def test_a_cut_costs_a_window_each_way(make_link: Callable[..., Link]) -> None:
    size, chunk = 300_000, 1024
    link = make_link(Script(up=Faults(bytes_per_second=250_000), down=Faults(bytes_per_second=250_000)))
    whole = both_ways(link, size, chunk)
    link.turn_until(lambda: max(link.up_bytes, link.down_bytes) > 0.5 * size)
    assert not link.node.gone and not link.node.fetched
    link.proxy.cut_all()
    link.turn_until(whole)
    check(link, size)
    # What the broker holds for this node comes as well, wanted or not.
    until = time.monotonic() + 2.0
    link.turn_until(lambda: time.monotonic() > until)
    assert link.proxy.connections["n"] == 2
    for passed in (link.up_bytes, link.down_bytes):
        # Envelopes; a window of ours, and one of mosquitto's, which sends again what a session had under way.
        assert passed <= size * (1 + ENVELOPE_BYTES / chunk) + (mqtt._MOST_UNDER_WAY + WINDOW) * chunk, passed


def test_a_killed_node_goes_on_from_what_was_flushed(make_link: Callable[..., Link]) -> None:
    size, chunk = 600_000, 2048
    link = make_link(Script(down=Faults(bytes_per_second=600_000)))
    obj = link.coordinator.publish(size, chunk)
    link.node.transfers.fetch(obj, time.monotonic())
    link.turn_until(lambda: link.down_bytes > 0.6 * size)
    before = link.down_bytes
    link.restart_node()
    link.node.transfers.fetch(obj, time.monotonic())
    link.turn_until(lambda: bool(link.node.fetched))
    assert link.node.transfers.object_path(obj).read_bytes() == random.Random("published_state").randbytes(size)
    # The rest, what came since the last flush, and two windows.
    again = (64 + mqtt._MOST_UNDER_WAY + WINDOW) * chunk
    assert link.down_bytes - before <= (0.4 * size + again) * (1 + ENVELOPE_BYTES / chunk)


def test_a_killed_coordinator_grants_what_is_missing(make_link: Callable[..., Link]) -> None:
    size, chunk = 600_000, 2048
    link = make_link(Script(up=Faults(bytes_per_second=600_000)))
    link.send(size, chunk)
    link.turn_until(lambda: link.up_bytes > 0.6 * size)
    link.restart_coordinator()
    link.turn_until(lambda: bool(link.node.gone))
    assert link.coordinator.committed[0].read_bytes() == random.Random("update").randbytes(size)
    # What came since the last flush, and two windows.
    assert link.up_bytes <= (size + (64 + 2 * WINDOW) * chunk) * (1 + ENVELOPE_BYTES / chunk)


def test_a_link_that_loses_repeats_and_reorders_brings_every_byte_once(make_link: Callable[..., Link]) -> None:
    size, chunk = 60_000, 2048
    faults = Faults(drop=0.1, duplicate=0.25, reorder=0.25, topics=("chunk", "/state/", "grant", "ack", "offer"))
    link = make_link(Script(seed=5, up=faults, down=faults))
    link.turn_until(both_ways(link, size, chunk))
    check(link, size)
    assert min(link.proxy.counts[fault] for fault in ("drop", "duplicate", "reorder")) >= 3, link.proxy.counts


def test_a_jammer_of_bytes_costs_time_and_no_bit(make_link: Callable[..., Link]) -> None:
    """To a transfer jamming is loss, which is sent again, and never noise."""
    jammed = Faults(jam=0.2, topics=("chunk", "/state/"))
    link = make_link(Script(seed=2, up=jammed, down=jammed))
    link.turn_until(both_ways(link, 60_000, 2048))
    check(link, 60_000)
    assert link.proxy.counts["jam"] >= 6 and link.up_bytes + link.down_bytes > 2 * 60_000 + 6 * 2048


@pytest.mark.parametrize("persistence", [False, True], ids=["forgets", "remembers"])
def test_a_broker_killed_in_the_middle_costs_little(make_link: Callable[..., Link], persistence: bool) -> None:
    size, chunk = 300_000, 4096
    link = make_link(
        Script(up=Faults(bytes_per_second=250_000), down=Faults(bytes_per_second=250_000)), persistence=persistence
    )
    whole = both_ways(link, size, chunk)
    link.turn_until(lambda: link.up_bytes > 0.4 * size and link.down_bytes > 0.4 * size)
    link.broker.kill()
    link.broker.start()
    link.turn_until(whole)
    check(link, size)
    assert link.up_bytes <= 1.1 * size + 2 * WINDOW * chunk
    assert link.node.transport.wait_connected(1).protocol == "MQTT 5", "a lost link is no reason to leave version 5"


def test_a_lost_probe_says_nothing_about_sizes(make_link: Callable[..., Link]) -> None:
    link = make_link(Script(seed=3, up=Faults(drop=0.5, topics=("/probe",))))
    events: queue.Queue[Any] = queue.Queue()
    settings = MqttSettings(link.proxy.url, "prober", "n", link.broker.passwords["n"])
    transport = MqttTransport(settings, random.Random(0))
    transport.start(events.put)
    try:
        limits: Limits = transport.wait_connected(60)
        sizes = [
            usable_chunk_bytes(transport, events, TOPICS.probe, limits, 8192, bytes([number])) for number in range(3)
        ]
    finally:
        transport.stop()
    assert sizes == [8192] * 3 and link.proxy.counts["drop"] >= 1
