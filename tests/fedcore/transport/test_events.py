# SPDX-License-Identifier: Apache-2.0
"""A burst of messages waits with whoever brings it; everything else passes."""

from __future__ import annotations

import queue
import threading

import pytest

from fedcore.transport.base import Disconnected, Received
from fedcore.transport.events import EventQueue


def message(size: int) -> Received:
    return Received("topic", bytes(size), False)


def test_events_come_out_in_order_and_none_is_made_up() -> None:
    events: EventQueue[object] = EventQueue(most_bytes=10)
    said = [message(4), Disconnected("gone"), message(6), Disconnected("again")]
    for event in said:
        events.put(event)
    assert [events.get(0.0) for _ in said] == said and events.empty()
    with pytest.raises(queue.Empty):
        events.get(0.0)


@pytest.mark.parametrize("size", [7, 1000])
def test_a_message_waits_until_there_is_room_and_other_events_do_not(size: int) -> None:
    events: EventQueue[object] = EventQueue(most_bytes=10, patience_seconds=60)
    events.put(message(5))
    brought = threading.Event()

    def bring() -> None:
        events.put(message(size))
        brought.set()

    thread = threading.Thread(target=bring)
    thread.start()
    assert not brought.wait(0.05)
    events.put(Disconnected("passes"))
    assert events.get(0.0) == message(5)
    assert brought.wait(120)
    thread.join()
    assert [events.get(0.0) for _ in range(2)] == [Disconnected("passes"), message(size)]


def test_nobody_waits_for_ever_for_a_loop_that_stands_still() -> None:
    events: EventQueue[object] = EventQueue(most_bytes=1, patience_seconds=0.01)
    for _ in range(3):
        events.put(message(5))
    assert [events.get(0.0) for _ in range(3)] == [message(5)] * 3
