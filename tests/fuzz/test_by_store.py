# SPDX-License-Identifier: Apache-2.0
"""Updates by way of a store, with the machines of both sides and no threads: whatever is lost, late, repeated, killed or
forgotten, each update arrives once and whole, and nothing is put twice."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import coordinator.objects.uploads
from coordinator.messages.inbox import Inbox
from coordinator.objects.uploads import Uploads
from fedcore.wire.actions import Action, Done, Put, Send, SendChunk
from fedcore.wire.files import manifest_of, read_chunk
from fedcore.wire.messages import Ack, Chunk, Commit, Grant, Offer, Refuse
from fedcore.wire.transfer import Sender
from tests.coordinator.messages.stores import SECTION, Beside, Store
from tests.fuzz.sequences import quick

DATA = random.Random(3).randbytes(2500)
WINDOW = 2


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
