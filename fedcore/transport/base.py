# SPDX-License-Identifier: Apache-2.0
"""What a transport is: at-least-once publish and subscribe, and nothing more.

A transport may lose, repeat and reorder messages; transfers live with that. It never queues without bound: what cannot
go out now is told to the caller, whose timers try again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

__all__ = [
    "CONNECT_SECONDS",
    "Connected",
    "Denied",
    "Disconnected",
    "Limits",
    "Message",
    "Received",
    "Sink",
    "Transport",
    "TransportEvent",
]


CONNECT_SECONDS: Final = 20.0
"""How long whoever starts waits for the broker, before that is an error."""


@dataclass(frozen=True)
class Message:
    """What is published; an empty retained payload clears the topic."""

    topic: str
    payload: bytes
    retain: bool = False


@dataclass(frozen=True)
class Limits:
    """What the broker said about itself: largest packet in bytes (None: no limit told), and protocol."""

    max_packet_bytes: int | None
    protocol: str
    max_qos: int = 2
    """Above 0, messages come at least once."""
    retain: bool = True
    """Whether it keeps the last message of a topic for who comes later."""
    wildcards: bool = True
    """Whether filters may have `+` and `#`."""
    session_seconds: int | None = None
    """How long it keeps the session of a client that is away; None: as long as it was asked to."""


@dataclass(frozen=True)
class Connected:
    """The link is up and every subscription renewed."""

    limits: Limits


@dataclass(frozen=True)
class Disconnected:
    """The link is down; the transport is trying again."""

    reason: str


@dataclass(frozen=True)
class Denied:
    """The broker does not let us subscribe. Where it did not say why, it is asked again, and that is told once."""

    topic_filter: str
    reason: str
    lasting: bool = True
    """Whether it is to stay so: the broker says that it is forbidden, or has refused for long what it never granted."""


@dataclass(frozen=True)
class Received:
    """A message for one of our subscriptions."""

    topic: str
    payload: bytes
    retained: bool


TransportEvent = Connected | Disconnected | Denied | Received
Sink = Callable[[TransportEvent], None]


class Transport(Protocol):
    """A connection that keeps itself up."""

    def start(self, sink: Sink, will: Message | None = None) -> None:
        """Begin to connect; returns at once. The sink MUST only enqueue: it is called on the transport's own thread."""
        ...

    def wait_connected(self, timeout_seconds: float) -> Limits:
        """Wait for the first connection.

        Raises:
            BrokerUnreachable: Nobody answers there.
            BrokerRefused: The broker says no.
        """
        ...

    def publish(self, message: Message) -> bool:
        """Hand a message over; False, and nothing happens, while disconnected or while too much is under way."""
        ...

    def subscribe(self, topic_filter: str, *, again: bool = True) -> None:
        """Receive a filter's messages, now and after every reconnect; retained ones come at once.

        Args:
            topic_filter: With `+` and `#`.
            again: Whether retained messages come once more after a reconnect, also where the broker has kept the
                session. Not for what is large and can be asked for piece by piece.
        """
        ...

    def unsubscribe(self, topic_filter: str) -> None:
        """Receive them no more."""
        ...

    def stop(self) -> None:
        """Disconnect cleanly: the will is not sent."""
        ...

    def abandon(self) -> None:
        """Cut the link without a word, as a crash would: the will is sent."""
        ...
