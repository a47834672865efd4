# SPDX-License-Identifier: Apache-2.0
"""One link for two: a run's agent, and whoever listens to the fleet's notices meanwhile. A device has one certificate,
and so one link."""

from __future__ import annotations

from collections.abc import Callable

from fedcore.transport.base import Connected, Limits, Message, Received, Sink, Transport, TransportEvent

__all__ = ["Linked"]


class Linked:
    """An agent's transport, of whose messages those of the fleet are taken out.

    Args:
        transport: Not started yet.
        notice: The fleet's topic.
        prefix: What all topics of the agent's run begin with; what else a broker still sends is left aside.
        heard: Gets what is the fleet's, and that the link is up.
        farewell: The fleet's last word on this link, if it has one.
    """

    def __init__(
        self,
        transport: Transport,
        notice: str,
        prefix: str,
        heard: Callable[[Received | Connected], None],
        farewell: Callable[[], Message | None] = lambda: None,
    ) -> None:
        self._transport, self._notice, self._prefix, self._heard = transport, notice, f"{prefix}/", heard
        self._farewell = farewell
        self._filters: set[str] = set()

    def start(self, sink: Sink, will: Message | None = None) -> None:
        """See `Transport`."""

        def parted(event: TransportEvent) -> None:
            if isinstance(event, Received) and event.topic == self._notice:
                self._heard(event)
                return
            if isinstance(event, Connected):
                self._heard(event)
            if not isinstance(event, Received) or event.topic.startswith(self._prefix):
                sink(event)

        self._transport.subscribe(self._notice)
        self._transport.start(parted, will)

    def wait_connected(self, timeout_seconds: float) -> Limits:
        """See `Transport`."""
        return self._transport.wait_connected(timeout_seconds)

    def publish(self, message: Message) -> bool:
        """See `Transport`."""
        return self._transport.publish(message)

    def subscribe(self, topic_filter: str, *, again: bool = True) -> None:
        """See `Transport`."""
        self._filters.add(topic_filter)
        self._transport.subscribe(topic_filter, again=again)

    def unsubscribe(self, topic_filter: str) -> None:
        """See `Transport`."""
        self._filters.discard(topic_filter)
        self._transport.unsubscribe(topic_filter)

    def stop(self) -> None:
        """See `Transport`; the broker keeps nothing of this run for the next link."""
        for topic_filter in (self._notice, *sorted(self._filters)):
            self._transport.unsubscribe(topic_filter)
        if (last := self._farewell()) is not None:
            self._transport.publish(last)
        self._transport.stop()

    def abandon(self) -> None:
        """See `Transport`."""
        self._transport.abandon()
