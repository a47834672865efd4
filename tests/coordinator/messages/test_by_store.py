# SPDX-License-Identifier: Apache-2.0
"""The coordinator's side of updates by way of a store: what is granted, fetched, given up and taken away."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import coordinator.objects.uploads
from coordinator.messages.inbox import Inbox
from coordinator.objects.uploads import Uploads
from fedcore.wire.files import manifest_of, read_chunk
from fedcore.wire.messages import Ack, Commit, Grant, Offer, Refuse
from tests.coordinator.messages.stores import SECTION, Beside, Store

DATA = random.Random(3).randbytes(2500)


@pytest.fixture(autouse=True, scope="module")
def no_threads() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coordinator.objects.uploads, "Aside", Beside)
        yield


class Bench:
    """The coordinator's side for several nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store, self.now, self.notes = folder, Store(), 0.0, list[str]()
        self.source = folder / "source"
        self.source.write_bytes(DATA)
        self.manifest = manifest_of(self.source, 1024)
        self.told: list[tuple[str, Grant | Ack | Commit | Refuse]] = []
        self.refuse = ""
        note = lambda kind, node, words: self.notes.append(words)  # noqa: E731
        self.uploads = Uploads(SECTION, "r/i-updates", note, lambda: self.now, opened=lambda _: self.store)
        self.inbox = Inbox(
            lambda *one: self.refuse,
            lambda node, body: self.told.append((node, body)),
            most_bytes=1,
            uploads=self.uploads,
        )
        Beside.let = lambda: True

    def offer(self, node: str, way: Any, transfer: str = "1-t") -> None:
        self.inbox.offer(node, Offer(transfer, self.manifest, way), self.folder / f"{node}.bin", self.now)

    def put(self, node: str, data: bytes = DATA, transfer: str = "1-t") -> None:
        self.store.held[f"r/i-updates/{node}/{transfer}"] = data

    def collect(self) -> int:
        return sum(self.inbox.collect(self.now) for _ in range(6))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_what_goes_by_the_store_takes_no_room_of_the_broker(bench: Bench) -> None:
    names = [f"n{number}" for number in range(9)]
    bench.offer("chunks", "chunks")
    for node in names:
        bench.offer(node, "store")
    assert [body.address for _, body in bench.told[1:] if isinstance(body, Grant)] == [
        f"https://s3/r/i-updates/{node}/1-t" for node in names
    ]
    assert list(bench.inbox.waiting) == []
    for node in names:
        bench.put(node)
        bench.offer(node, "stored")
        bench.offer(node, "stored")
    assert list(bench.inbox.waiting) == names, "who has put waits for us"
    del bench.told[:]
    assert bench.collect() == len(names) * len(DATA)
    assert sorted(node for node, body in bench.told if body == Commit("1-t")) == names
    assert len(bench.told) == bench.inbox.by_store == len(names)
    assert not bench.store.held and all((bench.folder / f"{node}.bin").read_bytes() == DATA for node in names)
    bench.inbox.clear()


@pytest.mark.parametrize("data", [b"", DATA[:-1], DATA + b"x", DATA[::-1]], ids=["nothing", "less", "more", "another"])
def test_what_is_not_what_was_offered_comes_in_chunks(data: bytes, bench: Bench) -> None:
    bench.offer("n", "store")
    bench.put("n", data)
    bench.offer("n", "stored")
    read = bench.collect()
    assert read == (len(DATA) if len(data) == len(DATA) else 0)
    assert bench.told[1:] == [("n", Grant("1-t", 8, b"\0"))] and bench.store.held == {}
    # Whatever it asks for from now on, its chunks are waited for.
    for way in ("stored", "store"):
        bench.offer("n", way)
        assert bench.told[-1] == ("n", Grant("1-t", 8, b"\0"))
    for index in range(3):
        bench.inbox.chunk("n", read_chunk(bench.source, "1-t", index, 1024), 0.0)
    assert bench.told[-1] == ("n", Commit("1-t")) and (bench.folder / "n.bin").read_bytes() == DATA
    bench.inbox.clear()


def test_a_store_that_is_away_rests_and_the_broker_brings(bench: Bench) -> None:
    for node in ("a", "b"):
        bench.offer(node, "store")
        bench.put(node)
    bench.store.away = True
    bench.offer("a", "stored")
    bench.inbox.collect(0.0)
    bench.inbox.collect(0.0)
    bench.offer("b", "stored")
    bench.offer("c", "store")
    bench.inbox.spare(1.0)
    bench.inbox.spare(2.0)
    assert [(node, body.address) for node, body in bench.told[2:] if isinstance(body, Grant)] == [
        ("a", ""),
        ("b", ""),
        ("c", ""),
    ]
    bench.store.away, bench.now = False, 61.0
    bench.offer("d", "store")
    assert isinstance(bench.told[-1][1], Grant) and bench.told[-1][1].address
    bench.put("d")
    bench.offer("d", "stored")
    bench.collect()
    assert bench.told[-1] == ("d", Commit("1-t"))
    assert [note.partition(" ")[0] for note in bench.notes] == ["store:", "store:"] and "again" in bench.notes[1]
    bench.inbox.clear()


def test_a_refused_update_and_what_is_left_of_a_round_are_taken_away(bench: Bench) -> None:
    bench.refuse = "no"
    bench.put("n")
    bench.offer("n", "stored")
    bench.collect()
    assert bench.told == [("n", Refuse("1-t", "no"))] and bench.store.held == {}
    assert not (bench.folder / "n.bin").exists()
    for node, transfer in (("late", "1-t"), ("early", "2-t")):
        bench.put(node, transfer=transfer)
    bench.inbox.clear(lambda transfer: transfer.startswith("2-"))
    bench.collect()
    assert list(bench.store.held) == ["r/i-updates/early/2-t"]


def test_another_transfer_takes_the_place_of_what_is_fetched(bench: Bench) -> None:
    bench.put("n")
    bench.offer("n", "stored")
    bench.offer("n", "store", "1-u")
    bench.put("n", transfer="1-u")
    bench.offer("n", "stored", "1-u")
    bench.collect()
    assert [body for _, body in bench.told if isinstance(body, Commit)] == [Commit("1-u")]
    assert not list(bench.folder.glob("*.fetched"))


def test_a_fetch_that_hangs_is_given_up(bench: Bench) -> None:
    bench.put("n")
    bench.offer("n", "stored")
    Beside.let = lambda: False
    bench.collect()
    assert bench.told == []
    bench.now = 31.0
    bench.collect()
    assert bench.told == [("n", Grant("1-t", 8, b"\0"))] and "too slow" in bench.notes[0]
    Beside.let = lambda: True
    bench.collect()
    assert len(bench.told) == 1 and not list(bench.folder.glob("*.fetched"))
    bench.inbox.clear()


def test_what_a_node_has_put_does_not_count_once_it_is_left(bench: Bench) -> None:
    bench.put("n")
    bench.offer("n", "stored")
    bench.inbox.leave_store("n")
    bench.collect()
    assert bench.told == [] and not (bench.folder / "n.bin").exists() and not list(bench.folder.glob("*.fetched"))
