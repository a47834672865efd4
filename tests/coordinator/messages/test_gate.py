# SPDX-License-Identifier: Apache-2.0
"""One enrolled node against the rest: what it may have in the queue, how often it is served, and what it is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.messages.gate import Gate
from coordinator.messages.inbox import Inbox
from coordinator.messages.meeting import Meeting
from coordinator.messages.repairs import Repairs
from coordinator.messages.senders import Senders
from coordinator.store.view import NodeView
from fedcore.errors import ForgedMessage, OtherVersion
from fedcore.fields.formats import PROTOCOL, SPOKEN
from fedcore.transport.base import Received
from fedcore.wire.codec import decode, encode
from fedcore.wire.files import manifest_of, read_chunk
from fedcore.wire.messages import Chunk, Commit, Declined, Envelope, Offer, Status, Telemetry, Topics
from fedcore.wire.post import Post

TOPICS = Topics("r")
OURS, THEIRS = "b" * 32, "a" * 32


def said(kind: str, node: str = "n", size: int = 100, *, retained: bool = False) -> Received:
    topic = TOPICS.status(node) if kind == "status" else TOPICS.up(node, kind)
    return Received(topic, bytes(size), retained)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_node_has_a_bounded_share_of_the_queue_and_leaves_the_others_theirs() -> None:
    gate = Gate(TOPICS, Clock())
    assert sum(gate.admits(said("chunk")) for _ in range(400)) == 64
    assert gate.admits(said("chunk", "other")) and gate.struck() == []
    gate.taken(said("chunk"))
    assert gate.admits(said("chunk")) and not gate.admits(said("chunk"))
    large = Gate(TOPICS, Clock())
    # By bytes too, but for one message, however large.
    assert [large.admits(said("chunk", size=10 * 2**20)) for _ in range(3)] == [True, False, False]
    assert large.admits(Received(TOPICS.plan, b"", retained=False))


def test_small_messages_have_a_rate_and_who_goes_on_regardless_is_struck_off_and_named() -> None:
    clock = Clock()
    gate = Gate(TOPICS, clock)

    def flood(number: int, node: str = "n") -> int:
        admitted = 0
        for _ in range(number):
            if gate.admits(said("declined", node)):
                admitted += 1
                gate.taken(said("declined", node))
        return admitted

    assert flood(400) == 400 and flood(100) == 0
    clock.now += 1
    assert flood(200) == 100 and gate.struck() == []
    assert flood(600) == 0
    assert gate.struck() == [("n", "sends far more than a node has to say: not heard for 60 s")]
    clock.now += 59
    assert flood(1) == 0 and flood(1, "honest") == 1
    clock.now += 2
    assert flood(1) == 1 and flood(400 + 500) == 399
    assert [node for node, words in gate.struck() if "120 s" in words] == ["n"]


def test_what_a_node_retains_where_it_should_not_does_not_come_in() -> None:
    gate = Gate(TOPICS, Clock())
    assert gate.admits(said("status", retained=True)) and not gate.admits(said("x", retained=True))


def test_repairs_come_by_turns_coalesced_and_for_at_most_half_of_the_time() -> None:
    clock, sent = Clock(), list[str]()

    def send(node: str, sha256: str, indices: tuple[int, ...]) -> None:
        sent.append(f"{node} {sha256} {indices[0]}")
        clock.now += 0.01

    repairs = Repairs(send, clock)
    for index in range(1000):
        repairs.want("greedy", "x", (index,))
    repairs.want("n", "x", (7,))
    for _ in range(50):
        repairs.serve()
    assert sent == ["greedy x 999", "n x 7"] and not repairs.pending
    served = 0
    for _ in range(100):
        repairs.want("greedy", "x", (1,))
        before = len(sent)
        repairs.serve()
        served += len(sent) - before
        clock.now += 0.001
    assert served <= 1 + 100 * 0.001 / 0.01 + 5


def test_only_progress_of_an_offered_transfer_counts_as_progress(tmp_path: Path) -> None:
    path = tmp_path / "u"
    path.write_bytes(bytes(3000))
    offer = Offer("1-x", manifest_of(path, 1024))
    inbox = Inbox(lambda node, offer, path: "", lambda node, body: None)
    chunk = read_chunk(path, "1-x", 0, 1024)
    assert not inbox.chunk("n", chunk, 0.0), "never offered"
    inbox.offer("n", offer, tmp_path / "in" / "n", 0.0)
    assert not inbox.chunk("n", Chunk("1-y", 0, 0, b"junk"), 0.0)
    assert not inbox.chunk("n", Chunk("1-x", 1, 0, b"junk"), 0.0)
    assert inbox.chunk("n", chunk, 0.0) and not inbox.chunk("n", chunk, 1.0)
    inbox.clear()


# Which run a message is of.


def senders() -> Senders:
    found = Senders("r", None)
    found.run_id = OURS
    return found


def envelope(body: Status | Telemetry | Commit | Declined | Offer, run_id: str, start: int = 1) -> bytes:
    post = Post("r", "n", None, start, run_id)
    post.correlation = "word"
    return post.seal(body, 1)


def test_what_was_recorded_in_an_earlier_run_of_the_name_does_not_count() -> None:
    ours = senders()
    for body in (Declined("x"), Commit("1-x")):
        ours.open("n", envelope(body, OURS))
        for run_id in (THEIRS, ""):
            with pytest.raises(ForgedMessage, match="a message of another run of this name"):
                ours.open("n", envelope(body, run_id))
    # What a node says of itself is looked at, to tell it of this run; it counts no more than the others.
    assert ours.open("n", envelope(Status(online=True), THEIRS)).run_id == THEIRS
    assert ours.last_start("n") == 0


def test_a_last_will_counts_though_it_was_signed_before_the_node_heard_of_the_run() -> None:
    ours, lost = senders(), Status(online=False, state="lost")
    old = ours.open("n", envelope(lost, ""))
    assert not ours.is_last_will("n", old), "nothing was heard of this start"
    ours.open("n", envelope(Status(online=True), OURS, start=4))
    assert ours.is_last_will("n", ours.open("n", envelope(lost, "", start=4)))
    assert not ours.is_last_will("n", ours.open("n", envelope(lost, THEIRS, start=3)))


class Desk:
    """A meeting, what it answered, and what it noted."""

    def __init__(self) -> None:
        self.clock, self.welcomed, self.noted = Clock(), list[tuple[str, int, str]](), list[tuple[str, str, str]]()
        self.seen = NodeView("n")
        self.senders = senders()
        note: Callable[[str, str, str], None] = lambda *words: self.noted.append(words)  # noqa: E731
        self.meeting = Meeting(self, self.senders, lambda node: self.seen, note, self.clock)  # type: ignore[arg-type]

    def welcome(self, node: str, number: int, correlation: str) -> None:
        self.welcomed.append((node, number, correlation))


def test_a_stranger_is_welcomed_with_its_own_word_at_a_bounded_rate() -> None:
    desk = Desk()
    desk.senders.open("n", envelope(Status(online=True), OURS, start=5))
    stranger = decode(envelope(Status(online=True), "", start=1))
    for _ in range(50):
        desk.meeting.stranger("n", stranger)
    # It lost its disk: it counts on from what was heard of it.
    assert desk.welcomed == [("n", 5, "word")] and desk.noted == []
    desk.clock.now += 2
    desk.meeting.stranger("n", stranger)
    desk.meeting.stranger("n", decode(envelope(Status(online=False, state="lost"), THEIRS)))
    assert len(desk.welcomed) == 2


def test_a_node_that_goes_over_to_another_coordinator_is_told() -> None:
    desk = Desk()
    desk.meeting.joined("n")
    desk.meeting.stranger("n", decode(envelope(Status(online=True), THEIRS)))
    ((kind, node, words),) = desk.noted
    assert (kind, node) == ("other_run", "n") and "does a second coordinator lead one?" in words


def test_another_version_is_refused_by_name_and_shown() -> None:
    desk = Desk()
    raw = encode(Envelope(run="r", round=1, node="n", body=Status(online=True), version=PROTOCOL - 1))
    with pytest.raises(OtherVersion) as error:
        desk.senders.open("n", raw)
    desk.meeting.other_version("n", error.value)
    words = f"node speaks protocol {PROTOCOL - 1}, coordinator {PROTOCOL}: upgrade fedkrso on the node"
    assert desk.noted == [("version", "n", words)] and desk.welcomed == [("n", 0, "")]
    assert (desk.seen.trouble, desk.seen.online) == (words, False)
    status = Status(online=True, formats={**SPOKEN, "update": 1}, software="0.1.0")
    assert not desk.meeting.agrees("n", status) and "(it has 0.1.0)" in desk.seen.trouble
    assert desk.meeting.agrees("n", Status(online=True, formats=dict(SPOKEN)))
