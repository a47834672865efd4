# SPDX-License-Identifier: Apache-2.0
"""What the transport does not take at once: words about an update wait, the last one of each kind; chunks are asked for
again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from plans import make_plan, with_artefact

from coordinator.messages.publisher import Publisher, key_of
from coordinator.store.folder import RunFolder
from fedcore.errors import TransportError
from fedcore.round.plan import ArtefactObject, Plan, StateObject
from fedcore.transport.base import Message
from fedcore.transport.memory import MemoryBroker
from fedcore.wire.codec import decode
from fedcore.wire.files import manifest_of
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


def test_a_run_artefact_goes_out_retained_before_the_first_plan_and_again_when_a_broker_may_have_forgotten_it(
    tmp_path: Path,
) -> None:
    narrow, topics = Narrow(), Topics("r")
    publisher = Publisher(narrow, Post("r", "", None, 1), topics, RunFolder(tmp_path), 2, lambda: 0)  # type: ignore[arg-type]
    RunFolder(tmp_path).artefact.write_bytes(bytes(range(100)))
    manifest = manifest_of(RunFolder(tmp_path).artefact, 64)
    plan = make_plan(training=with_artefact(manifest.sha256), artefact=ArtefactObject(manifest))
    chunks = [topics.published_state(manifest.sha256[:16], index) for index in (0, 1)]
    narrow.room = 20
    for said in ([*chunks, topics.plan], [topics.plan]):
        publisher.plan(plan)
        assert [message.topic for message in narrow.taken] == said and all(message.retain for message in narrow.taken)
        narrow.taken.clear()
    publisher.forgotten()
    publisher.plan(plan)
    assert [message.topic for message in narrow.taken] == [*chunks, topics.plan]
    narrow.taken.clear()
    assert publisher.repair("a", manifest.sha256, (1, 7), {}) and not publisher.repair("a", "0" * 64, (0,), {})
    (message,) = narrow.taken
    body = decode(message.payload).body
    assert isinstance(body, Chunk) and message.topic == topics.down("a", "chunk") and body.data == bytes(range(64, 100))


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


def test_at_the_end_all_that_leads_a_latecomer_from_nothing_to_the_last_state_is_retained(tmp_path: Path) -> None:
    broker, folder, topics = MemoryBroker(), RunFolder(tmp_path), Topics("r")
    transport = broker.connect()
    transport.start(lambda event: None)
    publisher = Publisher(transport, Post("r", "", None, 1), topics, folder, 2, lambda: 0)
    objects = []
    for kind, base, size in (("whole", None, 5000), ("difference", 1, 90)):
        path = folder.published_state(2, kind)  # type: ignore[arg-type]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes([size % 251]) * size)
        objects.append(StateObject(2, 0, base, "", manifest_of(path, 1024)))
    kept = {key_of(obj): obj for obj in objects}
    publisher.published_state(2, kept)
    assert len(broker.retained("#")) == 1, "the difference alone, while somebody answers"
    publisher.last_state(make_plan(3, objects=tuple(objects), version=2), kept)
    chunks = [decode(found.payload).body for found in broker.retained(topics.published_state("+", "+"))]
    whole = [body.data for body in chunks if isinstance(body, Chunk) and body.transfer == objects[0].manifest.sha256]
    assert b"".join(whole) == folder.published_state(2, "whole").read_bytes()


def test_a_plan_that_does_not_pass_the_broker_is_named_with_the_number_of_nodes(tmp_path: Path) -> None:
    narrow = Narrow()
    publisher = Publisher(narrow, Post("r", "", None, 1), Topics("r"), RunFolder(tmp_path), 2, lambda: 0)  # type: ignore[arg-type]
    publisher.most_bytes = 18_432
    # Names that have nothing in common: a plan is deflated.
    names = tuple(hashlib.sha256(bytes([number % 256, number // 256])).hexdigest()[:40] for number in range(1000))
    with pytest.raises(TransportError, match=r"for 1000 nodes does not pass the broker.*round\.cohort"):
        publisher.plan(make_plan(cohort=names))


def lying(folder: RunFolder, size_bytes: int) -> StateObject:
    """The first published state, as a file of zeros."""
    path = folder.published_state(1, "whole")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(size_bytes))
    return StateObject(1, 0, None, "", manifest_of(path, 1024))


def test_a_state_that_goes_out_slowly_holds_no_answer_up_and_the_plan_comes_after_it(tmp_path: Path) -> None:
    narrow, folder, topics = Narrow(), RunFolder(tmp_path), Topics("r")
    publisher = Publisher(narrow, Post("r", "", None, 1), topics, folder, 2, lambda: 2)  # type: ignore[arg-type]
    obj, done = lying(folder, 5000), list[str]()
    narrow.room = 1
    publisher.published_state(1, {key_of(obj): obj}, lambda: done.append("out"))
    earlier, plan = make_plan(1), make_plan(2)
    publisher.plan(earlier)
    publisher.plan(plan)
    publisher.remind("a", plan)
    publisher.reply("a", 1, Ack("t", b"\x01"))
    narrow.room = 2
    assert not publisher.flush() and not publisher.over and not done
    state, ack = topics.published_state(obj.manifest.sha256[:16], 0)[:-1], topics.down("a", "ack")
    assert [message.topic for message in narrow.taken] == [f"{state}0", ack, f"{state}1"]
    narrow.room = 10
    assert publisher.flush() and publisher.over and done == ["out"] and publisher.flush()
    assert [message.topic for message in narrow.taken[3:]] == [f"{state}2", f"{state}3", f"{state}4", topics.plan]
    body = decode(narrow.taken[-1].payload).body
    assert isinstance(body, Plan) and body.key == plan.key != earlier.key
    chunks = sum(len(message.payload) for message in narrow.taken if message.topic != ack)
    assert publisher.sent_bytes == 2 * chunks + len(narrow.taken[1].payload)
    publisher.remind("a", plan)
    assert narrow.taken[-1].topic == topics.down("a", "plan")


def test_a_link_that_comes_while_a_state_waits_for_it_does_not_bring_the_plan_before_back(tmp_path: Path) -> None:
    """The state goes out with the link, and opens the next round: its plan is the last that is said."""
    narrow, folder, topics = Narrow(), RunFolder(tmp_path), Topics("r")
    publisher = Publisher(narrow, Post("r", "", None, 1), topics, folder, 2, lambda: 0)  # type: ignore[arg-type]
    obj = lying(folder, 100)
    closed, opened = make_plan(1), make_plan(2)
    publisher.published_state(1, {key_of(obj): obj}, lambda: publisher.plan(opened))
    assert not narrow.taken
    narrow.room = 20
    publisher.again(closed, {key_of(obj): obj})
    plans = [decode(message.payload).body for message in narrow.taken if message.topic == topics.plan]
    assert [body.key for body in plans if isinstance(body, Plan)] == [closed.key, opened.key]
    publisher.remind("a", opened)
    assert narrow.taken[-1].topic == topics.down("a", "plan")


def test_a_run_that_has_ended_does_not_wait_for_a_broker_that_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = Narrow()
    publisher = Publisher(narrow, Post("r", "", None, 1), Topics("r"), RunFolder(tmp_path), 2, lambda: 0)  # type: ignore[arg-type]
    publisher.plan(make_plan())
    assert not publisher.over
    monkeypatch.setattr("coordinator.messages.outbox._STUCK_SECONDS", -1.0)
    assert publisher.over and not publisher.flush()
