# SPDX-License-Identifier: Apache-2.0
"""What the transport does not take at once: words about an update wait, the last one of each kind; chunks are asked for again."""

from __future__ import annotations

from pathlib import Path

from coordinator.files import RunFolder
from coordinator.publisher import Publisher
from fedcore.transport.base import Message
from fedcore.transport.memory import MemoryBroker
from fedcore.wire.codec import decode
from fedcore.wire.messages import Ack, Chunk, Commit, Topics
from fedcore.wire.post import Post


class Narrow:
    """A transport that takes a few messages at a time."""

    def __init__(self) -> None:
        self.room = 0
        self.taken: list[Message] = []
        self._real = MemoryBroker().connect()

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    def publish(self, message: Message) -> bool:
        if self.room == 0:
            return False
        self.room -= 1
        self.taken.append(message)
        return True


def test_what_a_full_transport_does_not_take_goes_out_later_and_only_the_last_of_a_kind(tmp_path: Path) -> None:
    narrow = Narrow()
    topics = Topics("r")
    publisher = Publisher(narrow, Post("r", "", None, 1), topics, RunFolder(tmp_path), 2, lambda: 0)  # type: ignore[arg-type]
    publisher.reply("a", 1, Ack("t", b"\x01"))
    publisher.reply("a", 1, Ack("t", b"\x03"))
    publisher.reply("b", 1, Commit("u"))
    publisher.reply("b", 1, Chunk("v", 0, 0, b""))
    assert not publisher.flush() and not narrow.taken
    narrow.room = 1
    assert not publisher.flush()
    narrow.room = 5
    assert publisher.flush() and publisher.flush()
    sent = [(message.topic, decode(message.payload).body) for message in narrow.taken]
    assert sent == [(topics.down("a", "ack"), Ack("t", b"\x03")), (topics.down("b", "commit"), Commit("u"))]
    # A later word that goes out at once is not followed by an earlier one.
    narrow.room = 0
    publisher.reply("a", 1, Ack("t", b"\x07"))
    narrow.room = 5
    publisher.reply("a", 1, Ack("t", b"\x0f"))
    assert publisher.flush() and decode(narrow.taken[-1].payload).body == Ack("t", b"\x0f") and len(narrow.taken) == 3
