# SPDX-License-Identifier: Apache-2.0
"""Many nodes offer at once: what is under way together stays bounded, everybody gets a turn, and nobody who is silent
holds it up."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.messages.inbox import Inbox
from fedcore.wire.files import manifest_of, read_chunk
from fedcore.wire.messages import Ack, Commit, Grant, Offer, Refuse

CHUNK_BYTES, CHUNKS = 1024, 4
# Room for three transfers of four chunks.
ROOM = 3 * CHUNKS * CHUNK_BYTES


class Bench:
    def __init__(self, folder: Path) -> None:
        self.source, self.folder = folder / "source", folder
        self.source.write_bytes(random.Random(0).randbytes(CHUNKS * CHUNK_BYTES))
        self.manifest = manifest_of(self.source, CHUNK_BYTES)
        self.granted: list[str] = []
        self.ended: list[str] = []
        self.accepted: list[str] = []
        self.refuse = ""
        self.inbox = Inbox(self._accept, self._reply, most_bytes=ROOM)

    def _accept(self, node: str, offer: Offer, path: Path) -> str:
        self.accepted.append(node)
        return self.refuse

    def _reply(self, node: str, message: Grant | Ack | Commit | Refuse) -> None:
        if isinstance(message, Grant):
            self.granted.append(node)
        elif isinstance(message, Commit | Refuse):
            self.ended.append(node)

    def offer(self, node: str, transfer: str = "1-t", now: float = 0.0) -> None:
        self.inbox.offer(node, Offer(transfer, self.manifest), self.folder / f"{node}.bin", now)

    def send(self, node: str, transfer: str = "1-t") -> None:
        for index in range(CHUNKS):
            self.inbox.chunk(node, read_chunk(self.source, transfer, index, CHUNK_BYTES), 0.0)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.inbox.clear()


def names(first: int, last: int) -> list[str]:
    return [f"n{index:02}" for index in range(first, last)]


def test_grants_are_given_in_the_order_of_offers_and_only_while_there_is_room(bench: Bench) -> None:
    for node in names(0, 20):
        bench.offer(node)
        bench.offer(node)
    # A node with a grant that asks again is granted again; one that waits is not.
    assert bench.granted == ["n00", "n00", "n01", "n01", "n02", "n02"]
    assert list(bench.inbox.waiting) == names(3, 20)
    del bench.granted[:]
    for index, node in enumerate(names(0, 20)):
        bench.send(node)
        assert bench.granted == names(3, min(20, 4 + index))
    assert bench.accepted == bench.ended == names(0, 20) and not list(bench.inbox.waiting)


def test_a_refused_update_makes_room_too(bench: Bench) -> None:
    bench.refuse = "no"
    for node in names(0, 4):
        bench.offer(node)
    bench.send("n00")
    assert bench.granted == names(0, 4) and bench.ended == ["n00"]


def test_silent_nodes_hold_nobody_up(bench: Bench) -> None:
    for node in names(0, 6):
        bench.offer(node)
    now = 10.0
    for _ in range(100):
        now += 0.01
        bench.inbox.spare(now)
    assert bench.granted == names(0, 6)
    # A clock that was set back does not stop that.
    bench.offer("n06", now=now)
    bench.inbox.spare(now - 3600)
    assert bench.granted == names(0, 7)


def test_another_transfer_of_a_node_takes_the_place_of_its_first(bench: Bench) -> None:
    for node in names(0, 4):
        bench.offer(node)
    bench.offer("n03", "1-other")
    bench.offer("n00", "1-other")
    assert bench.granted == ["n00", "n01", "n02", "n03"], "the room that it gave up went to who was waiting"
    bench.send("n03", "1-other")
    bench.send("n00", "1-other")
    assert bench.accepted == ["n03", "n00"] and bench.granted[-1] == "n00"


def test_a_round_that_is_over_forgets_who_waited(bench: Bench) -> None:
    for node in names(0, 5):
        bench.offer(node)
    bench.inbox.clear()
    bench.inbox.spare(5.0)
    assert bench.granted == names(0, 3) and not list(bench.inbox.waiting)
    bench.offer("n04", "2-t")
    assert bench.granted[-1] == "n04"
