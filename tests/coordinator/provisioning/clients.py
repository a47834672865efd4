# SPDX-License-Identifier: Apache-2.0
"""Clients of a real broker with what `fedkrso provision` makes, and what a refused one is told."""

from __future__ import annotations

import contextlib
import queue
import random
import time
from typing import Any

import pytest

from coordinator.provisioning.broker import LocalBroker
from fedcore.errors import BrokerRefused, TransportError
from fedcore.transport.base import Disconnected, Message, Received
from fedcore.transport.mqtt import MqttSettings, MqttTransport
from fedcore.wire.messages import Topics

TOPICS = Topics("voice")


USERS = ("coordinator", "a", "b")


READY = b"ready"


class Client:
    """A connected user and what it has received."""

    def __init__(self, settings: MqttSettings, *filters: str, patience: float = 15.0) -> None:
        self.events: queue.Queue[Any] = queue.Queue()
        self.filters = filters
        self.transport = MqttTransport(settings, random.Random(0))
        for entry in filters:
            self.transport.subscribe(entry)
        self.transport.start(self.events.put)
        try:
            self.transport.wait_connected(patience)
        except TransportError:
            self.transport.stop()
            raise

    def publish(self, topic: str, payload: bytes = b"x", *, retain: bool = False) -> None:
        assert self.transport.publish(Message(topic, payload, retain=retain))

    def next(self, seconds: float = 120.0) -> tuple[str, bytes]:
        """The next message but for those of `ready`."""
        deadline = time.monotonic() + seconds
        while True:
            event = self.events.get(timeout=max(0.01, deadline - time.monotonic()))
            if isinstance(event, Received) and event.payload != READY:
                return event.topic, event.payload

    def ready(self, sender: Client, topic: str) -> None:
        """Wait until the broker has our subscriptions: until what `sender` writes to one of them arrives."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            sender.publish(topic, READY)
            with contextlib.suppress(queue.Empty):
                while True:
                    event = self.events.get(timeout=0.2)
                    if isinstance(event, Received) and event.payload == READY:
                        return
        raise AssertionError(f"{topic} does not arrive")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        # The broker keeps a user's session: the next test's must not inherit these.
        for entry in self.filters:
            self.transport.unsubscribe(entry)
        self.transport.stop()


def client(broker: LocalBroker, user: str, *filters: str, client_id: str = "") -> Client:
    if user != "coordinator":
        return Client(broker.settings(client_id or user, user), *filters)
    made = Client(broker.settings(user, user), *filters, TOPICS.probe)
    made.ready(made, TOPICS.probe)
    return made


def lost(events: queue.Queue[Any]) -> str:
    """Why a link was lost, or does not come back."""
    while not isinstance(event := events.get(timeout=120), Disconnected):
        pass
    return event.reason


def refusal(settings: MqttSettings, kind: type[TransportError] = BrokerRefused) -> str:
    """The one line that a client is told, soon."""
    started = time.monotonic()
    with pytest.raises(kind) as error:
        Client(settings, patience=8.0 if kind is BrokerRefused else 3.0)
    assert time.monotonic() - started < 6
    line = error.value.one_line()
    assert "\n" not in line and error.value.remedy
    return line
