# SPDX-License-Identifier: Apache-2.0
"""Messages, bitmaps, transfers and their files."""

from __future__ import annotations

import queue
import random
import tracemalloc
import zlib
from collections.abc import Sequence
from pathlib import Path

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import make_plan

from fedcore.errors import ForgedMessage, MalformedMessage
from fedcore.fields.manifest import Manifest
from fedcore.transport.base import Message, Received
from fedcore.transport.memory import Faults, MemoryBroker
from fedcore.wire.actions import Action, Done, Refused, Send, SendChunk, Store, Verify
from fedcore.wire.bitmap import Bitmap
from fedcore.wire.codec import decode, encode
from fedcore.wire.files import PartialFile, manifest_of, read_chunk
from fedcore.wire.gather import Gather
from fedcore.wire.identity import SigningKey
from fedcore.wire.messages import Ack, Chunk, Commit, Envelope, Grant, Missing, Offer, Refuse
from fedcore.wire.transfer import Receiver, Sender

MANIFEST = Manifest("u", 10, "ab" * 32, 4)


def chunk(index: int, data: bytes) -> Chunk:
    return Chunk("t", index, zlib.crc32(data), data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_an_envelope_or_malformed(payload: bytes) -> None:
    try:
        envelope = decode(payload)
    except MalformedMessage:
        return
    assert isinstance(envelope, Envelope)


PLAN = Envelope(
    run="r", round=1, node="", body=make_plan(cohort=tuple(f"node-{number:05}" for number in range(10_000)))
)


def test_a_plan_for_10_000_nodes_takes_a_fifth_of_its_names() -> None:
    payload = encode(PLAN)
    assert decode(payload) == PLAN
    plain = msgpack.packb(msgspec.to_builtins(PLAN, builtin_types=(bytes,)))
    assert len(payload) < len(plain) / 4
    # As a program that deflates nothing would write it.
    assert decode(bytes(64) + plain) == PLAN


def test_a_deflated_message_is_signed_as_it_travels_and_a_right_one_to_the_byte() -> None:
    key = SigningKey(bytes(32))
    payload = encode(PLAN, key)
    assert decode(payload, key.public) == PLAN
    with pytest.raises(ForgedMessage):
        decode(payload[:64] + zlib.compress(zlib.decompress(payload[64:]), 1), key.public)
    with pytest.raises(MalformedMessage, match="there is more behind it"):
        decode(encode(PLAN) + b"x")
    with pytest.raises(MalformedMessage, match="cut short"):
        decode(encode(PLAN)[:-1])


def test_what_a_few_bytes_would_come_to_is_not_made() -> None:
    """A megabyte of zeros is a thousand bytes, of which 64 times as many would be taken."""
    bomb = bytes(64) + zlib.compress(bytes(1_000_000), 9)
    tracemalloc.start()
    with pytest.raises(MalformedMessage, match=r"more than \d+ bytes inflated"):
        decode(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300_000
    with pytest.raises(MalformedMessage, match="more than 1250000 bytes inflated"):
        decode(bytes(64) + zlib.compress(random.Random(0).randbytes(20_000) * 70, 9))


def still_decodes(message: bytes, data: st.DataObject, *, first: int, most: int) -> None:
    """With up to `most` bytes from `first` on changed, it is an envelope, or malformed in one line."""
    raw = bytearray(message)
    for _ in range(data.draw(st.integers(1, most))):
        raw[data.draw(st.integers(first, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert isinstance(decode(bytes(raw)), Envelope)
    except MalformedMessage as error:
        assert error.one_line()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_deflated_messages_are_an_envelope_or_malformed(data: st.DataObject) -> None:
    # The stream behind the signature.
    still_decodes(
        encode(Envelope(run="r", round=1, node="", body=make_plan(cohort=("a", "b")))), data, first=64, most=3
    )


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_messages_are_an_envelope_or_malformed(data: st.DataObject) -> None:
    still_decodes(encode(Envelope(run="r", round=3, node="n", body=Offer("t", MANIFEST))), data, first=0, most=4)


def test_other_protocol_versions_and_large_messages_are_named() -> None:
    with pytest.raises(MalformedMessage, match="protocol version 1, this program speaks 5"):
        decode(encode(Envelope(run="r", round=1, node="n", body=Commit("t"), version=1)))
    with pytest.raises(MalformedMessage, match="11 bytes where 65 to 10 are allowed"):
        decode(b"x" * 11, max_bytes=10)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 70), st.binary(max_size=12), st.sets(st.integers(0, 69)))
def test_bitmap_is_a_set(size: int, foreign: bytes, added: set[int]) -> None:
    bitmap = Bitmap(size, foreign)
    expected = {i for i in range(min(size, 8 * len(foreign))) if foreign[i // 8] >> (i % 8) & 1}
    for index in added:
        assert bitmap.add(index) == (index < size and index not in expected)
        expected |= {index} & set(range(size))
    assert set(bitmap.missing()) == set(range(size)) - expected and len(bitmap) == len(expected)
    assert list(Bitmap(size, bitmap.tobytes()).missing()) == list(bitmap.missing())


def test_sender_keeps_its_window_and_ends_with_the_commit() -> None:
    sender = Sender("t", MANIFEST)
    assert sender.tick(0.0) == [Send(Offer("t", MANIFEST))]
    assert sender.handle(Grant("t", 2, b"\x00"), 0.1) == [SendChunk(0), SendChunk(1)]
    assert sender.handle(Ack("t", b"\x01"), 0.2) == [SendChunk(2)]
    assert sender.handle(Ack("t", b"\x01"), 0.3) == []
    assert sender.handle(Ack("t", b"\x07"), 0.4) == []
    assert sender.handle(Commit("t"), 0.5) == [Done()]
    assert sender.handle(Commit("t"), 0.6) == []


def test_sender_resends_without_progress_and_resumes_from_a_grant() -> None:
    sender = Sender("t", MANIFEST, resend_seconds=1.0)
    sender.tick(0.0)
    sender.handle(Grant("t", 2, b"\x00"), 0.0)
    assert sender.tick(0.5) == []
    assert sender.tick(1.1) == [Send(Offer("t", MANIFEST))]
    # The pause doubles without progress.
    assert sender.tick(2.5) == []
    assert sender.handle(Grant("t", 2, b"\x01"), 2.6) == [SendChunk(1), SendChunk(2)]
    assert sender.handle(Refuse("t", "late"), 2.7) == [Refused("late")]


def test_sender_sends_nothing_twice_on_a_link_slower_than_its_pause() -> None:
    sender = Sender("t", MANIFEST, resend_seconds=1.0)
    sender.tick(0.0)
    assert sender.handle(Grant("t", 2, b"\x00"), 0.0) == [SendChunk(0), SendChunk(1)]
    assert sender.tick(1.5) == [Send(Offer("t", MANIFEST))]
    # The first chunk took 2 seconds; its acknowledgement lets the third go out, behind the offer.
    assert sender.handle(Ack("t", b"\x01"), 2.0) == [SendChunk(2)]
    assert sender.tick(5.5) == []
    # The grant answers for the second, which is lost, and not for the third, which is on its way.
    assert sender.handle(Grant("t", 2, b"\x01"), 5.6) == [SendChunk(1)]


def test_sender_sends_nothing_twice_through_a_broker_that_takes_seconds() -> None:
    """A thousand nodes offer at once, and each message lies five seconds: answers to the offers that were repeated
    meanwhile are no reason to send chunks again."""
    sender, receiver, slow = Sender("t", MANIFEST), Receiver("t", MANIFEST), 5.0
    data, sent = (b"abcd", b"efgh", b"zz"), []
    up: list[tuple[float, Offer | Chunk]] = []
    down: list[tuple[float, Grant | Ack | Commit]] = []

    def act(actions: Sequence[Action], now: float) -> None:
        for action in actions:
            match action:
                case Send(Offer() as offer):
                    up.append((now + slow, offer))
                case SendChunk(index):
                    sent.append(index)
                    up.append((now + slow, chunk(index, data[index])))
                case Send(Grant() | Ack() | Commit() as answer):
                    down.append((now + slow, answer))
                case Verify():
                    act(receiver.verified(whole=True), now)

    for tick in range(1200):
        now = tick / 10
        act(sender.tick(now), now)
        while up and up[0][0] <= now:
            act(receiver.handle(up.pop(0)[1], now), now)
        while down and down[0][0] <= now:
            act(sender.handle(down.pop(0)[1], now), now)
    assert sent == [0, 1, 2] and sender.finished


def test_receiver_stores_acknowledges_verifies_and_commits_again() -> None:
    receiver = Receiver("t", MANIFEST, window=2)
    assert receiver.handle(Offer("t", MANIFEST), 0) == [Send(Grant("t", 2, b"\x00"))]
    assert receiver.handle(chunk(2, b"zz"), 0) == [Store(2, b"zz"), Send(Ack("t", b"\x04"))]
    assert receiver.handle(chunk(2, b"zz"), 0) == [Send(Ack("t", b"\x04"))]
    assert receiver.handle(Chunk("t", 0, 1, b"abcd"), 0) == []
    assert receiver.handle(chunk(0, b"too long"), 0) == []
    assert receiver.handle(chunk(9, b"abcd"), 0) == []
    receiver.handle(chunk(0, b"abcd"), 0)
    assert receiver.handle(chunk(1, b"efgh"), 0)[-1] == Verify()
    assert receiver.verified(whole=False) == [Send(Grant("t", 2, b"\x00"))]
    for index, data in enumerate((b"abcd", b"efgh", b"zz")):
        receiver.handle(chunk(index, data), 0)
    assert receiver.verified(whole=True) == [Send(Commit("t"))]
    assert receiver.handle(Offer("t", MANIFEST), 0) == [Send(Commit("t"))]


def test_gather_takes_any_order_and_asks_for_the_rest() -> None:
    gather = Gather(MANIFEST, b"", 0.0, random.Random(0), patience_seconds=1.0, window=2)
    data = {0: b"abcd", 1: b"efgh", 2: b"zz"}

    def piece(index: int) -> Chunk:
        return Chunk(MANIFEST.sha256, index, zlib.crc32(data[index]), data[index])

    assert gather.handle(piece(2), 0.1) == [Store(2, b"zz")]
    assert gather.tick(0.2) == []
    assert gather.tick(5.0) == [Send(Missing(MANIFEST.sha256, (1,)))]
    assert gather.handle(piece(1), 5.1) == [Store(1, b"efgh"), Send(Missing(MANIFEST.sha256, (0,)))]
    assert gather.handle(piece(0), 5.2) == [Store(0, b"abcd"), Verify()]
    assert gather.verified(whole=True) == [Done()]


def test_gather_waits_for_a_broadcast_that_is_slow() -> None:
    manifest = Manifest("o", 40, "ab" * 32, 4)
    gather = Gather(manifest, b"", 0.0, random.Random(0), patience_seconds=1.0)
    asked = []
    for index in range(10):
        for moment in range(30):
            # Three seconds a chunk, on a link where repairs would come behind the broadcast.
            asked += gather.tick(3.0 * index + 0.1 * moment)
        gather.handle(Chunk(manifest.sha256, index, zlib.crc32(b"slow"), b"slow"), 3.0 * (index + 1))
    assert asked == [Send(Missing(manifest.sha256, (9,)))] and gather.bitmap.full


def test_an_outage_is_not_taken_for_a_slow_link() -> None:
    manifest = Manifest("o", 12, "ab" * 32, 4)

    def piece(index: int) -> Chunk:
        return Chunk(manifest.sha256, index, zlib.crc32(b"four"), b"four")

    def asked_after(*, told: bool) -> float:
        gather = Gather(manifest, b"", 0.0, random.Random(0), patience_seconds=1.0)
        gather.handle(piece(0), 0.1)
        # Nothing comes for forty seconds; then the link is there again, and brings a chunk.
        for second in range(1, 41):
            gather.tick(float(second))
        if told:
            gather.link_lost()
        gather.handle(piece(1), 40.0)
        return next(second for second in range(41, 100) if gather.tick(float(second))) - 40.0

    assert asked_after(told=False) >= 30 and asked_after(told=True) <= 2


def test_partial_file_resumes_and_discards_what_is_not_its_own(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(random.Random(1).randbytes(10_000))
    manifest = manifest_of(source, 1024)
    part = PartialFile(tmp_path / "copy", manifest)
    for index in (3, 0, 7):
        part.write(index, read_chunk(source, "t", index, 1024).data)
    part.close()
    again = PartialFile(tmp_path / "copy", manifest)
    assert sorted(set(range(10)) - set(again.bitmap.missing())) == [0, 3, 7]
    for index in again.bitmap.missing():
        again.write(index, read_chunk(source, "t", index, 1024).data)
    assert again.finish() and (tmp_path / "copy").read_bytes() == source.read_bytes()
    other = Manifest("copy", 10_000, "00" * 32, 1024)
    PartialFile(tmp_path / "two", manifest).close()
    wrong = PartialFile(tmp_path / "two", other)
    assert len(wrong.bitmap) == 0
    for index in range(10):
        wrong.write(index, read_chunk(source, "t", index, 1024).data)
    assert not wrong.finish() and len(wrong.bitmap) == 0 and not (tmp_path / "two").exists()
    wrong.close()


@pytest.mark.parametrize("seed", range(30))
def test_transfer_survives_drops_repeats_and_disorder(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    source = tmp_path / "source"
    source.write_bytes(chance.randbytes(chance.randint(0, 30_000)))
    manifest = manifest_of(source, 1024)
    broker = MemoryBroker(faults=Faults(chance, drop=0.2, duplicate=0.2, hold=0.3))
    up: queue.Queue = queue.Queue()
    down: queue.Queue = queue.Queue()
    node, server = broker.connect(), broker.connect()
    node.start(down.put)
    server.start(up.put)
    node.subscribe("down")
    server.subscribe("up")
    sender = Sender("t", manifest)
    receiver, part = Receiver("t", manifest, window=4), PartialFile(tmp_path / "copy", manifest)
    restart_at, now, committed = chance.randint(1, 40), 0.0, False

    def post(topic: str, transport: object, body: object) -> None:
        transport.publish(Message(topic, encode(Envelope(run="r", round=1, node="n", body=body))))  # type: ignore[attr-defined, arg-type]

    def serve(actions: list) -> None:
        for action in actions:
            match action:
                case Store(index, data):
                    part.write(index, data)
                case Send(message):
                    post("down", server, message)
                case Verify():
                    serve(receiver.verified(part.finish()))

    for turn in range(2000):
        now += 0.5
        if turn == restart_at and not receiver.committed:
            # The receiver is killed: what it flushed is all it knows afterwards.
            part.close()
            part = PartialFile(tmp_path / "copy", manifest)
            receiver = Receiver("t", manifest, part.bitmap.tobytes(), window=4)
        actions = sender.tick(now)
        while not down.empty():
            event = down.get()
            if isinstance(event, Received):
                actions += sender.handle(decode(event.payload).body, now)  # type: ignore[arg-type]
        for action in actions:
            match action:
                case Send(message):
                    post("up", node, message)
                case SendChunk(index):
                    post("up", node, read_chunk(source, "t", index, 1024))
                case Done():
                    committed = True
        assert sender.unacknowledged <= 4
        while not up.empty():
            event = up.get()
            if isinstance(event, Received):
                serve(receiver.handle(decode(event.payload).body, now))  # type: ignore[arg-type]
        if committed:
            break
    assert committed and (tmp_path / "copy").read_bytes() == source.read_bytes()
