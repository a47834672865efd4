# SPDX-License-Identifier: Apache-2.0
"""How large a chunk may be: found out by sending one to oneself, because brokers do not tell.

mosquitto's `message_size_limit`, for one, is announced nowhere: a larger message is acknowledged and dropped (MQTT
3.1.1), or costs the connection (MQTT 5). Only what comes back has passed."""

from __future__ import annotations

import queue
import secrets
import time
from collections.abc import Callable
from typing import Any

from fedcore.errors import BrokerRefused, TransportError
from fedcore.transport.base import Connected, Denied, Disconnected, Limits, Message, Received, Transport
from fedcore.transport.filters import PATIENCE_SECONDS
from fedcore.transport.lacking import lacking

__all__ = ["denied", "largest_message", "look_at", "settled", "usable_chunk_bytes"]

# Room for signature and envelope around a chunk, and as much again for the packet's own head.
_ENVELOPE_BYTES = 1024
_LEAST_BYTES = 1024
# Topic and head of a packet.
_HEAD_BYTES = 256
_ECHO_SECONDS, _AGAIN_SECONDS = 5.0, 1.0
_CUTS = 3
_ALLOW = "allow the coordinator to write and read its run's topics at the broker"


def usable_chunk_bytes(
    transport: Transport, events: queue.Queue[Any], topic: str, limits: Limits, wanted: int, nonce: bytes
) -> int:
    """The largest of `wanted`, `wanted` / 2, ... whose message comes back from the broker.

    Args:
        transport: Started and connected; its sink is `events`.
        events: Other events found there stay there, in order.
        topic: One that only we write and read.
        limits: What the broker told.
        wanted: Chunk size in bytes to begin with.
        nonce: Tells our probes from those of an earlier start.

    Raises:
        BrokerRefused: The broker does not let us read the topic.
        TransportError: Not even small messages come back: no right to write or read the topic.
    """
    if limits.max_packet_bytes is not None:
        wanted = min(wanted, limits.max_packet_bytes - 2 * _ENVELOPE_BYTES)
    others: list[Any] = []
    size, proven = wanted, False
    transport.subscribe(topic)
    try:
        while size >= _LEAST_BYTES:
            if _comes_back(transport, events, _probe(topic, size, nonce), others, _ECHO_SECONDS):
                return size
            began = time.monotonic()
            if not proven and not _comes_anew(transport, events, _probe(topic, _LEAST_BYTES, nonce), others):
                break
            # Where small messages took their time too, the broker was not ready: that says nothing about the size.
            ready, proven = proven or time.monotonic() - began < _AGAIN_SECONDS, True
            size = size // 2 if ready else size
    finally:
        transport.unsubscribe(topic)
        transport.publish(Message(topic, b"", retain=True))
        for event in others:
            events.put(event)
    raise TransportError(f"messages on {topic} do not come back", remedy=_ALLOW)


def look_at(limits: Limits, note: Callable[[str, str, str], None]) -> None:
    """Say what the broker lacks, as a run starts.

    Args:
        limits: What it said about itself.
        note: Adds (kind, node, text) to the event log.

    Raises:
        BrokerRefused: A coordinator cannot work there at all.
    """
    for words in lacking(limits):
        note("broker", "", words)
    if not limits.wildcards:
        raise BrokerRefused("the broker takes no wildcards", remedy="a coordinator needs them: take another broker")


def settled(
    transport: Transport,
    events: queue.Queue[Any],
    topic: str,
    limits: Limits,
    wanted: int,
    note: Callable[[str, str, str], None],
) -> tuple[int, int | None]:
    """Find out what passes the broker, and say what it lacks, as a run starts.

    Args:
        transport: As for `usable_chunk_bytes`, and so the next three.
        events: Of the transport.
        topic: One that only we write and read.
        limits: What the broker told.
        wanted: Chunk size in bytes to begin with.
        note: Adds (kind, node, text) to the event log.

    Returns:
        Bytes of a chunk that passes; and above how many bytes a message certainly does not, None where that is not
        known.

    Raises:
        TransportError: A coordinator cannot work there.
    """
    look_at(limits, note)
    usable = usable_chunk_bytes(transport, events, topic, limits, wanted, secrets.token_bytes(16))
    if usable < wanted:
        note("link", "", f"the broker takes chunks of {usable} bytes, not {wanted}")
    return usable, largest_message(limits, usable, wanted)


def denied(event: Denied, note: Callable[[str, str, str], None]) -> None:
    """The broker does not let us hear something that a coordinator cannot do without.

    Args:
        event: What it refuses.
        note: Adds (kind, node, text) to the event log.

    Raises:
        BrokerRefused: It is to stay so. Everything acknowledged is in the ledger.
    """
    if event.lasting:
        words, place = f"the broker does not let us read: {event.reason}", event.topic_filter
        raise BrokerRefused(words, place=place, remedy=_ALLOW)
    note("link", "", f"the broker does not let us read {event.topic_filter} now ({event.reason}): asked again")


def largest_message(limits: Limits, usable: int, wanted: int) -> int | None:
    """What is certainly too large for the broker begins above this, in bytes; None where nothing is known to be.

    Args:
        limits: What it said about itself.
        usable: Bytes of a chunk that came back.
        wanted: Bytes of a chunk that were tried first.

    Example:
        >>> largest_message(Limits(None, "MQTT 5"), 8192, 262_144), largest_message(Limits(None, "MQTT 5"), 4096, 4096)
        (18432, None)
    """
    told = None if limits.max_packet_bytes is None else limits.max_packet_bytes - _HEAD_BYTES
    # Twice as much was lost.
    tried = None if usable >= wanted else 2 * (usable + _ENVELOPE_BYTES)
    return min((size for size in (told, tried) if size is not None), default=None)


def _probe(topic: str, chunk_bytes: int, nonce: bytes) -> Message:
    # Retained, as published states are: some brokers take less then.
    return Message(topic, nonce + bytes(chunk_bytes + _ENVELOPE_BYTES - len(nonce)), retain=True)


def _comes_anew(transport: Transport, events: queue.Queue[Any], small: Message, others: list[Any]) -> bool:
    """Whether a small message comes back, by another subscription: a cluster of brokers without a leader may grant one
    that hears nothing."""
    transport.unsubscribe(small.topic)
    transport.subscribe(small.topic)
    return _comes_back(transport, events, small, others, PATIENCE_SECONDS)


def _comes_back(
    transport: Transport, events: queue.Queue[Any], probe: Message, others: list[Any], patience_seconds: float
) -> bool:
    now = time.monotonic()
    deadline, again_at, cuts = now + patience_seconds, now, 0
    sent = False
    while (now := time.monotonic()) < deadline:
        # One message may be lost, and one link: neither says anything about sizes.
        if now >= again_at and transport.publish(probe):
            sent, again_at = True, now + _AGAIN_SECONDS
        try:
            event = events.get(timeout=0.05)
        except queue.Empty:
            continue
        match event:
            case Received(topic, payload, _) if topic == probe.topic:
                if payload == probe.payload:
                    return True
            case Disconnected():
                others.append(event)
                cuts += sent
                sent, deadline = False, float("inf")
            case Denied(probe.topic):
                denied(event, lambda *said: None)
                # It is asked again for so long; the size is not what it refuses.
                deadline = time.monotonic() + PATIENCE_SECONDS + _ECHO_SECONDS
            case Connected():
                others.append(event)
                if cuts == _CUTS:
                    # Refused together with the link, again and again.
                    return False
                deadline, again_at = time.monotonic() + patience_seconds, 0.0
            case _:
                others.append(event)
    return False
