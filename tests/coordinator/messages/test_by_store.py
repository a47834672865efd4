# SPDX-License-Identifier: Apache-2.0
"""Updates by way of a store, with the machines of both sides and no threads: whatever is lost, late, repeated, killed or
forgotten, each update arrives once and whole, and nothing is put twice."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import coordinator.objects.uploads
from coordinator.messages.inbox import Inbox
from coordinator.objects.section import ObjectsSection
from coordinator.objects.uploads import Uploads
from fedcore.errors import StorageError
from fedcore.wire.actions import Action, Done, Put, Send, SendChunk
from fedcore.wire.files import manifest_of, read_chunk
from fedcore.wire.messages import Ack, Chunk, Commit, Grant, Offer, Refuse
from fedcore.wire.transfer import Sender
from tests.fuzz.sequences import quick

SECTION = ObjectsSection(url="s3://bucket", least="1B", uploads=True)
DATA = random.Random(3).randbytes(2500)
WINDOW = 2


class Store:
    """A bucket in memory."""

    place = "store"

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.away = False

    def _ask(self) -> None:
        if self.away:
            raise StorageError("does not serve", place=self.place)

    def put(self, name: str, path: Path) -> None:
        raise AssertionError("the coordinator puts no update")

    def names(self, prefix: str) -> Sequence[str]:
        self._ask()
        return sorted(name for name in self.held if name.startswith(f"{prefix}/"))

    def drop(self, name: str) -> None:
        self.drop_all([name])

    def drop_all(self, names: Sequence[str]) -> None:
        self._ask()
        for name in names:
            self.held.pop(name, None)

    def address(self, name: str, hold_seconds: float) -> str:
        raise AssertionError("nobody fetches an update")

    def address_to_put(self, name: str, hold_seconds: float) -> str:
        return f"https://s3/{name}"

    def get(self, name: str, path: Path, size_bytes: int) -> bool:
        self._ask()
        data = self.held.get(name, b"")
        path.write_bytes(data[:size_bytes])
        return len(data) == size_bytes


class Beside:
    """As `coordinator.objects.aside.Aside`, in this thread: a job is done when it is let."""

    let: Callable[[], bool] = staticmethod(lambda: True)

    def __init__(self, woken: Callable[[], None]) -> None:
        self._begun: tuple[Callable[[], Any], Callable[[Any], None]] | None = None

    @property
    def busy(self) -> bool:
        return self._begun is not None

    def begin(self, job: Callable[[], Any], then: Callable[[Any], None]) -> None:
        assert self._begun is None
        self._begun = job, then

    def collect(self) -> None:
        if self._begun is None or not Beside.let():
            return
        (job, then), self._begun = self._begun, None
        try:
            result = job()
        except StorageError as error:
            result = error
        then(result)


@pytest.fixture(autouse=True, scope="module")
def no_threads() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coordinator.objects.uploads, "Aside", Beside)
        yield


class World:
    """One node, one coordinator, a store, and links between them that a dice rules."""

    def __init__(self, chance: random.Random, folder: Path, *, calm: bool = False) -> None:
        self.chance, self.folder, self.now, self.calm = chance, folder, 0.0, calm
        self.said = list[Offer | Chunk]()
        self.source, self.store = folder / "source", Store()
        self.source.write_bytes(DATA)
        self.manifest = manifest_of(self.source, 1024)
        self.transfer = f"1-{self.manifest.sha256[:16]}"
        self.up: list[Offer | Chunk] = []
        self.down: list[Grant | Ack | Commit | Refuse] = []
        self.accepted, self.done, self.puts = 0, False, 0
        self.putting: str | None = None
        Beside.let = lambda: self.calm or self.chance.random() < 0.5
        self.inbox: Inbox | None = None
        self.begin_node()
        self.begin_coordinator()

    def begin_node(self) -> None:
        by_store = self.calm or self.chance.random() < 0.8
        self.sender, self.puts, self.putting = Sender(self.transfer, self.manifest, by_store=by_store), 0, None

    def begin_coordinator(self) -> None:
        for _, _, part in [] if self.inbox is None else self.inbox._open.values():
            part.abandon()
        section = SECTION if self.calm or self.chance.random() < 0.9 else None
        self.uploads = Uploads(
            section, "r/i-updates", lambda *told: None, lambda: self.now, opened=lambda _: self.store
        )
        self.inbox = Inbox(self.accept, lambda node, body: self.down.append(body), window=WINDOW, uploads=self.uploads)

    def accept(self, node: str, offer: Offer, path: Path) -> str:
        assert path.read_bytes() == DATA and not self.accepted, "counted once, and whole"
        self.accepted += 1
        return ""

    def carried(self, link: list[Any]) -> list[Any]:
        """What a link brings now."""
        if self.calm:
            brought, link[:] = list(link), []
            return brought
        brought = [one for one in link if self.chance.random() < 0.4]
        link[:] = [one for one in link if one not in brought or self.chance.random() < 0.1]
        self.chance.shuffle(brought)
        return [one for one in brought if self.chance.random() < 0.8]

    def node(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Put(address):
                    self.puts += 1
                    assert self.puts == 1 and self.putting is None, "a sender puts once"
                    self.putting = address.removeprefix("https://s3/")
                case SendChunk(index):
                    assert self.putting is None, "no chunk beside a PUT"
                    self.say(read_chunk(self.source, self.transfer, index, 1024))
                case Send(Offer() as offer):
                    self.say(offer)
                case Done():
                    self.done = True
                case _:
                    raise AssertionError(action)
        assert self.sender.unacknowledged <= WINDOW

    def say(self, message: Offer | Chunk) -> None:
        self.up.append(message)
        self.said.append(message)

    def end_put(self) -> None:
        name, self.putting = self.putting, None
        assert name is not None
        taken = self.calm or (not self.store.away and self.chance.random() < 0.7)
        if taken:
            # A disk may have damaged what was taken, or a liar sent another.
            self.store.held[name] = DATA if self.calm or self.chance.random() < 0.8 else DATA[:-1] + b"x"
        self.node(self.sender.put(taken, self.now))

    def turn(self) -> None:
        self.now += 0.5
        dice = 1.0 if self.calm else self.chance.random()
        if dice < 0.02:
            self.begin_node()
        elif dice < 0.04:
            self.begin_coordinator()
        elif dice < 0.08:
            self.store.away = not self.store.away
        elif dice < 0.10:
            self.store.held.clear()
        elif dice < 0.12:
            self.sender.link_lost()
        if self.putting is not None and (self.calm or self.chance.random() < 0.2):
            self.end_put()
        self.node(self.sender.tick(self.now))
        for message in self.carried(self.up):
            if self.accepted:
                # The ledger knows.
                self.down += [Commit(self.transfer)] if isinstance(message, Offer) else []
            elif isinstance(message, Offer):
                self.inbox.offer("n", message, self.folder / "n.bin", self.now)
            else:
                self.inbox.chunk("n", message, self.now)
        self.inbox.collect(self.now)
        for answer in self.carried(self.down):
            self.node(self.sender.handle(answer, self.now))


@quick
@given(seed=st.integers(0, 2**32), turns=st.integers(0, 80))
def test_an_update_arrives_once_and_whole_whatever_happens(seed: int, turns: int) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        world = World(random.Random(seed), folder)
        for _ in range(turns):
            if world.done:
                break
            world.turn()
        world.calm, world.store.away = True, False
        for _ in range(400):
            if world.done:
                break
            world.turn()
        assert world.done and world.accepted == 1 and world.inbox is not None
        world.inbox.clear()
        for _ in range(3):
            world.now += 100.0
            world.inbox.collect(world.now)
        assert not list(folder.glob("*.fetched")), "nothing is left of what was fetched"
        assert world.uploads._store is None or not world.store.held, "nor of what was put"
    finally:
        shutil.rmtree(folder)


def test_where_nothing_goes_wrong_no_chunk_passes_the_broker(tmp_path: Path) -> None:
    world = World(random.Random(0), tmp_path, calm=True)
    while not world.done:
        world.turn()
    assert [one.way for one in world.said if isinstance(one, Offer)] == ["store", "stored"] and len(world.said) == 2
    assert world.puts == 1 and world.inbox is not None and world.inbox.by_store == 1


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
