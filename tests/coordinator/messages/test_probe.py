# SPDX-License-Identifier: Apache-2.0
"""How large a chunk may be, found out at real brokers that do not tell."""

from __future__ import annotations

import queue
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster import needs_mosquitto

from benchmarks.mosquitto import Mosquitto
from coordinator.messages.probe import usable_chunk_bytes
from fedcore.errors import TransportError
from fedcore.transport.base import Limits, Received
from fedcore.transport.memory import MemoryBroker
from fedcore.transport.mqtt import MqttSettings, MqttTransport

TOPIC = "fedkrso/2/r/probe"


@contextmanager
def mosquitto(folder: Path, *lines: str) -> Iterator[MqttTransport]:
    """A client, not yet started, of a mosquitto with these lines in its configuration."""
    needs_mosquitto()
    broker = Mosquitto(folder, *lines)
    client = MqttTransport(MqttSettings(broker.url, "coordinator"), random.Random(0))
    try:
        yield client
    finally:
        client.stop()
        broker.stop()


@pytest.mark.parametrize(
    ("lines", "least", "most"),
    [
        ((), 262_144, 262_144),
        (("message_size_limit 128000",), 60_000, 128_000),
        (("max_packet_size 131072",), 120_000, 131_072),
    ],
    ids=["no limit", "a limit that nobody is told", "a limit in CONNACK"],
)
def test_mosquitto(tmp_path: Path, lines: tuple[str, ...], least: int, most: int) -> None:
    with mosquitto(tmp_path, *lines) as client:
        events: queue.Queue[Any] = queue.Queue()
        client.start(events.put)
        limits = client.wait_connected(60)
        client.subscribe("other")
        started = time.monotonic()
        found = usable_chunk_bytes(client, events, TOPIC, limits, 262_144, b"n" * 16)
        assert least <= found <= most and time.monotonic() - started < 20


def test_other_events_stay_in_order_and_old_probes_do_not_count() -> None:
    broker, events = MemoryBroker(), queue.Queue[Any]()
    client = broker.connect()
    client.start(events.put)
    events.get()
    others = [
        Received("t", b"1", retained=False),
        Received(TOPIC, b"old", retained=False),
        Received("t", b"2", retained=False),
    ]
    for event in others:
        events.put(event)
    assert usable_chunk_bytes(client, events, TOPIC, Limits(None, ""), 65_536, b"n") == 65_536
    assert [events.get_nowait() for _ in range(2)] == [others[0], others[2]] and events.empty()


def test_a_topic_that_may_not_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.messages.probe._ECHO_SECONDS", 0.1)
    monkeypatch.setattr("coordinator.messages.probe.PATIENCE_SECONDS", 0.1)
    client, events = MemoryBroker(max_packet_bytes=100).connect(), queue.Queue[Any]()
    client.start(events.put)
    with pytest.raises(TransportError, match=r"probe do not come back.*allow the coordinator"):
        usable_chunk_bytes(client, events, TOPIC, Limits(None, ""), 4096, b"n")
