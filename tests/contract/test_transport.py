# SPDX-License-Identifier: Apache-2.0
"""One body of tests that every transport passes: in memory, over nats-server (3.1.1) and over mosquitto (5)."""

from __future__ import annotations

import queue
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import needs_broker, needs_mosquitto

from coordinator.provisioning.broker import LocalBroker
from fedcore.errors import BrokerRefused, BrokerUnreachable
from fedcore.transport.base import Connected, Disconnected, Message, Received, Transport
from fedcore.transport.memory import MemoryBroker
from fedcore.transport.mqtt import MqttSettings, MqttTransport


class Bench:
    """A broker with clients whose events can be waited for."""

    def __init__(self, broker: Any, connect: Callable[[str], Transport]) -> None:
        self.broker = broker
        self.connect = connect
        self.clients: list[Transport] = []

    def client(self, name: str, will: Message | None = None) -> tuple[Transport, queue.Queue[Any]]:
        events: queue.Queue[Any] = queue.Queue()
        transport = self.connect(name)
        transport.start(events.put, will)
        transport.wait_connected(60)
        wait_for(events, Connected)
        self.clients.append(transport)
        return transport, events


def wait_for(events: queue.Queue[Any], kind: type, seconds: float = 120.0) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        event = events.get(timeout=max(0.01, deadline - time.monotonic()))
        if isinstance(event, kind):
            return event


def publish(transport: Transport, message: Message) -> None:
    deadline = time.monotonic() + 120
    while not transport.publish(message):
        assert time.monotonic() < deadline, "publish was refused for ten seconds"
        time.sleep(0.01)


@pytest.fixture(params=["memory", "nats", "mosquitto"], scope="module")
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One of each kind for all tests: what a test sends is under a topic of its own, from clients of its own."""
    if request.param == "memory":
        yield MemoryBroker()
        return
    needs_broker(request.param)
    with LocalBroker(tmp_path_factory.mktemp("broker"), kind=request.param) as local:
        yield local


@pytest.fixture
def bench(broker: Any, request: pytest.FixtureRequest) -> Iterator[Bench]:
    def connect(name: str) -> Transport:
        if isinstance(broker, MemoryBroker):
            return broker.connect()
        return MqttTransport(broker.settings(f"{request.node.originalname}-{name}"), random.Random(0))

    made = Bench(broker, connect)
    yield made
    for client in made.clients:
        client.stop()


def test_delivers_what_a_filter_covers_and_nothing_else(bench: Bench) -> None:
    sender, _ = bench.client("a")
    receiver, events = bench.client("b")
    receiver.subscribe("t/+/up/#")
    time.sleep(0.2)
    publish(sender, Message("t/1/down/x", b"no"))
    publish(sender, Message("t/1/up/x/y", b"yes"))
    assert wait_for(events, Received) == Received("t/1/up/x/y", b"yes", retained=False)


def test_large_payload_arrives_whole(bench: Bench) -> None:
    sender, _ = bench.client("a")
    receiver, events = bench.client("b")
    receiver.subscribe("big")
    time.sleep(0.2)
    payload = random.Random(1).randbytes(262_144 + 300)
    publish(sender, Message("big", payload))
    assert wait_for(events, Received).payload == payload


def test_retained_message_reaches_a_later_subscriber_until_it_is_cleared(bench: Bench) -> None:
    sender, _ = bench.client("a")
    publish(sender, Message("plan", b"1", retain=True))
    time.sleep(0.3)
    early, events = bench.client("b")
    early.subscribe("plan")
    assert wait_for(events, Received) == Received("plan", b"1", retained=True)
    publish(sender, Message("plan", b"", retain=True))
    time.sleep(0.3)
    late, others = bench.client("c")
    late.subscribe("plan")
    with pytest.raises(queue.Empty):
        wait_for(others, Received, seconds=0.5)


def test_will_is_sent_for_a_client_that_vanishes_and_not_for_one_that_leaves(bench: Bench) -> None:
    watcher, events = bench.client("w")
    watcher.subscribe("will/#")
    time.sleep(0.2)
    leaving, _ = bench.client("l", Message("will/l", b"gone"))
    leaving.stop()
    vanishing, _ = bench.client("v", Message("will/v", b"gone"))
    vanishing.abandon()
    assert wait_for(events, Received).topic == "will/v"


def test_subscriptions_survive_a_restart_of_the_broker(bench: Bench) -> None:
    sender, said = bench.client("a")
    receiver, events = bench.client("b")
    receiver.subscribe("again")
    bench.broker.stop()
    wait_for(events, Disconnected)
    wait_for(said, Disconnected)
    assert not sender.publish(Message("again", b"lost"))
    bench.broker.restart() if isinstance(bench.broker, MemoryBroker) else bench.broker.start()
    wait_for(events, Connected, seconds=30)
    time.sleep(0.3)
    publish(sender, Message("again", b"again"))
    assert wait_for(events, Received).payload == b"again"


@pytest.mark.parametrize("kind", ["nats", "mosquitto"])
def test_wrong_password_is_one_clear_refusal(kind: Any, tmp_path: Path) -> None:
    needs_broker(kind)
    with LocalBroker(tmp_path / "broker", kind=kind) as broker:
        transport = MqttTransport(MqttSettings(broker.url, "x", "fedkrso", "wrong"), random.Random(0))
        transport.start(lambda event: None)
        with pytest.raises(BrokerRefused, match=r"127\.0\.0\.1:\d+: .*broker\.password"):
            transport.wait_connected(60)
        transport.stop()


def test_a_broker_that_is_started_again_knows_its_users(tmp_path: Path) -> None:
    """`fedkrso broker run` in the same folder: whoever was connected comes back."""
    needs_mosquitto()
    with LocalBroker(tmp_path / "broker", ["a"], kind="mosquitto") as first:
        passwords, port = first.passwords, first.port
        transport = MqttTransport(first.settings("a", "a"), random.Random(0))
        events: queue.Queue[Any] = queue.Queue()
        transport.start(events.put)
        wait_for(events, Connected)
    wait_for(events, Disconnected)
    with LocalBroker(tmp_path / "broker", ["a", "b"], kind="mosquitto", port=port) as again:
        assert again.passwords["a"] == passwords["a"] != again.passwords["b"]
        wait_for(events, Connected, seconds=30)
        transport.stop()


def test_unreachable_broker_is_named() -> None:
    transport = MqttTransport(MqttSettings("mqtt://127.0.0.1:9", "x"), random.Random(0))
    transport.start(lambda event: None)
    with pytest.raises(BrokerUnreachable, match=r"127\.0\.0\.1:9: .*refused.*is the broker running"):
        transport.wait_connected(4)
    transport.stop()


def test_a_host_that_nobody_knows_is_a_name_and_no_broker() -> None:
    transport = MqttTransport(MqttSettings("mqtt://no-such-host.invalid:1883", "x"), random.Random(0))
    transport.start(lambda event: None)
    with pytest.raises(BrokerUnreachable, match=r"no-such-host\.invalid:1883: .*is its name right in broker\.url"):
        transport.wait_connected(3)
    transport.stop()


def test_mosquitto_tells_its_packet_limit(tmp_path: Path) -> None:
    needs_mosquitto()
    with LocalBroker(tmp_path / "broker", kind="mosquitto", max_packet_bytes=131_072) as broker:
        transport = MqttTransport(broker.settings("x"), random.Random(0))
        transport.start(lambda event: None)
        assert transport.wait_connected(60).max_packet_bytes == 131_072
        transport.stop()
