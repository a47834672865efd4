# SPDX-License-Identifier: Apache-2.0
"""A broker in this process, for tests and simulations, with the semantics of MQTT and faults on demand."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field

from fedcore.errors import BrokerUnreachable
from fedcore.transport.base import Connected, Disconnected, Limits, Message, Received, Sink

__all__ = ["Faults", "MemoryBroker", "MemoryTransport", "matches"]


def matches(topic_filter: str, topic: str) -> bool:
    """Whether an MQTT filter with `+` and `#` covers a topic.

    Example:
        >>> matches("a/+/c", "a/b/c"), matches("a/#", "a/b/c"), matches("a/+", "a/b/c")
        (True, True, False)
    """
    wanted, parts = topic_filter.split("/"), topic.split("/")
    for place, level in enumerate(wanted):
        if level == "#":
            return True
        if place >= len(parts) or level not in ("+", parts[place]):
            return False
    return len(wanted) == len(parts)


@dataclass
class Faults:
    """What happens to messages on their way to a subscriber, drawn from a seeded generator.

    Attributes:
        random: Where chance comes from.
        drop, duplicate, hold: Probabilities; a held message arrives after the next one.
    """

    random: random.Random
    drop: float = 0.0
    duplicate: float = 0.0
    hold: float = 0.0


@dataclass
class MemoryBroker:
    """Topics, retained messages and connected transports."""

    faults: Faults | None = None
    max_packet_bytes: int | None = None
    up: bool = True
    _retained: dict[str, bytes] = field(default_factory=dict)
    _clients: list[MemoryTransport] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def connect(self) -> MemoryTransport:
        """A new transport to this broker."""
        return MemoryTransport(self)

    def stop(self) -> None:
        """Go away: everybody loses the link; retained messages are forgotten, as without persistence."""
        with self._lock:
            self.up = False
            self._retained.clear()
            for client in list(self._clients):
                client.cut("the broker went away")

    def restart(self) -> None:
        """Come back: transports that were started connect again."""
        with self._lock:
            self.up = True
            for client in list(self._clients):
                client.link()

    def route(self, message: Message) -> None:
        """Keep a retained message and pass it on."""
        with self._lock:
            if message.retain:
                if message.payload:
                    self._retained[message.topic] = message.payload
                else:
                    self._retained.pop(message.topic, None)
            for client in list(self._clients):
                client.deliver(Received(message.topic, message.payload, retained=False))

    def retained(self, topic_filter: str) -> list[Received]:
        """Retained messages under a filter."""
        with self._lock:
            return [Received(t, p, retained=True) for t, p in self._retained.items() if matches(topic_filter, t)]


class MemoryTransport:
    """One client of a `MemoryBroker`."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._filters: dict[str, None] = {}
        self._sink: Sink | None = None
        self._will: Message | None = None
        self._linked = False
        self._held: Received | None = None

    def start(self, sink: Sink, will: Message | None = None) -> None:
        """See `Transport`."""
        self._sink, self._will = sink, will
        with self._broker._lock:
            self._broker._clients.append(self)
            self.link()

    def wait_connected(self, timeout_seconds: float) -> Limits:
        """See `Transport`; a memory broker is there at once or not at all."""
        del timeout_seconds
        if not self._linked:
            raise BrokerUnreachable("the broker is down", place="memory")
        return Limits(self._broker.max_packet_bytes, "memory")

    def publish(self, message: Message) -> bool:
        """See `Transport`."""
        limit = self._broker.max_packet_bytes
        if not self._linked or (limit is not None and len(message.payload) > limit):
            return False
        self._broker.route(message)
        return True

    def subscribe(self, topic_filter: str, *, again: bool = True) -> None:
        """See `Transport`; this broker keeps no sessions, so retained messages always come again."""
        del again
        self._filters[topic_filter] = None
        if self._linked:
            self._deliver_retained(topic_filter)

    def unsubscribe(self, topic_filter: str) -> None:
        """See `Transport`."""
        self._filters.pop(topic_filter, None)

    def stop(self) -> None:
        """See `Transport`."""
        self._leave()

    def abandon(self) -> None:
        """See `Transport`."""
        will = self._will
        self._leave()
        if will is not None:
            self._broker.route(will)

    def link(self) -> None:
        """The broker is there: announce it and renew subscriptions."""
        if self._broker.up and not self._linked and self._sink is not None:
            self._linked = True
            self._sink(Connected(Limits(self._broker.max_packet_bytes, "memory")))
            for topic_filter in self._filters:
                self._deliver_retained(topic_filter)

    def cut(self, reason: str) -> None:
        """The link is lost."""
        if self._linked and self._sink is not None:
            self._linked = False
            self._sink(Disconnected(reason))

    def deliver(self, received: Received) -> None:
        """Pass a message to the sink if a filter covers it, through the broker's faults."""
        if not self._linked or self._sink is None or not any(matches(f, received.topic) for f in self._filters):
            return
        faults = self._broker.faults
        if faults is None:
            self._sink(received)
            return
        if faults.random.random() < faults.drop:
            return
        if self._held is None and faults.random.random() < faults.hold:
            self._held = received
            return
        self._sink(received)
        if faults.random.random() < faults.duplicate:
            self._sink(received)
        if self._held is not None:
            held, self._held = self._held, None
            self._sink(held)

    def _deliver_retained(self, topic_filter: str) -> None:
        if self._sink is not None:
            for received in self._broker.retained(topic_filter):
                self._sink(received)

    def _leave(self) -> None:
        with self._broker._lock:
            self._linked = False
            if self in self._broker._clients:
                self._broker._clients.remove(self)
