# SPDX-License-Identifier: Apache-2.0
"""The machines of a transfer under any sequence of messages, sensible or not: they never raise, and what they promise
holds after each message."""

from __future__ import annotations

import random
import time
import zlib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fedcore.fields.manifest import Manifest
from fedcore.wire.actions import Done, Refused, Send, SendChunk, Store, Verify
from fedcore.wire.bitmap import Bitmap
from fedcore.wire.gather import Gather
from fedcore.wire.messages import Ack, Chunk, Commit, Grant, Missing, Offer, Refuse
from fedcore.wire.transfer import Receiver, Sender
from tests.fuzz.sequences import quick

DATA = random.Random(7).randbytes(5000)


SHA = "cd" * 32


MANIFEST = Manifest("o", len(DATA), SHA, 1024)


OTHER = Manifest("o", 3, SHA, 1024)


CHUNKS = MANIFEST.chunks


transfers = st.sampled_from(["t", "u", SHA])


bitmaps = st.binary(max_size=3) | st.just(b"\xff" * 100)


indices = st.integers(0, CHUNKS) | st.just(2**20 - 1)


def real_chunk(index: int, transfer: str = "t") -> Chunk:
    data = DATA[index * 1024 : (index + 1) * 1024]
    return Chunk(transfer, index, zlib.crc32(data), data)


def chunks(transfer: str) -> st.SearchStrategy[Chunk]:
    foreign = st.builds(
        Chunk, transfers, indices, st.integers(0, 2**32 - 1), st.binary(max_size=20) | st.just(DATA[:1024])
    )
    return st.builds(real_chunk, st.integers(0, CHUNKS - 1), st.just(transfer)) | foreign


downs = st.one_of(
    st.builds(Grant, transfers, st.integers(1, 1024), bitmaps),
    st.builds(Ack, transfers, bitmaps),
    st.builds(Commit, st.just("u")),
    st.builds(Refuse, st.just("u"), st.text(max_size=5)),
    st.sampled_from(["tick", "lost"]),
)


@quick
@given(
    events=st.lists(downs, min_size=10, max_size=60),
    end=st.sampled_from([Commit("t"), Refuse("t", "late"), None]),
    seed=st.integers(0, 2**16),
)
def test_sender_keeps_to_its_window_and_its_object(events: list[Any], end: Any, seed: int) -> None:
    chance, sender, now, window = random.Random(seed), Sender("t", MANIFEST), 0.0, 0
    if end is not None:
        events.insert(chance.randint(0, len(events)), end)
    over = False
    for event in events:
        now += chance.choice((0.0, 0.1, 3.0, 100.0))
        if event == "lost":
            sender.link_lost()
            continue
        if isinstance(event, Grant) and event.transfer == "t" and not sender.finished:
            window = event.window
        actions = sender.tick(now) if event == "tick" else sender.handle(event, now)
        assert not (over and actions)
        for action in actions:
            match action:
                case Send(message):
                    assert message == Offer("t", MANIFEST)
                case SendChunk(index):
                    assert 0 <= index < CHUNKS
                case Done() | Refused():
                    assert event == end
                    over = True
                case _:
                    raise AssertionError(action)
        assert sender.unacknowledged <= min(window, CHUNKS)


@quick
@given(
    events=st.lists(st.builds(Offer, transfers, st.sampled_from([MANIFEST, OTHER])) | chunks("t"), max_size=60),
    have=bitmaps,
    seed=st.integers(0, 99),
)
def test_receiver_stores_only_whole_chunks_and_each_once(events: list[Any], have: bytes, seed: int) -> None:
    chance, receiver, committed = random.Random(seed), Receiver("t", MANIFEST, have), False
    stored = set(range(CHUNKS)) - set(Bitmap(CHUNKS, have).missing())
    for event in events:
        actions = receiver.handle(event, 0.0)
        while actions:
            action = actions.pop(0)
            match action:
                case Store(index, data):
                    assert data == DATA[index * 1024 : (index + 1) * 1024] and index not in stored
                    stored.add(index)
                case Verify():
                    assert stored == set(range(CHUNKS)) and not committed
                    whole = chance.random() < 0.5
                    stored = stored if whole else set()
                    committed = committed or whole
                    actions += receiver.verified(whole)
                case Send(Grant(transfer, window, bits)):
                    assert (transfer, window) == ("t", 8) and Bitmap(CHUNKS, bits).tobytes() == bits and not committed
                case Send(Ack(transfer, bits)):
                    assert transfer == "t" and set(range(CHUNKS)) - set(Bitmap(CHUNKS, bits).missing()) == stored
                case Send(Commit(transfer)):
                    assert transfer == "t" and committed
                case _:
                    raise AssertionError(action)


@quick
@given(events=st.lists(chunks(SHA) | st.just("tick"), min_size=20, max_size=60), have=bitmaps, seed=st.integers(0, 99))
def test_gather_asks_for_a_window_and_takes_only_its_own(events: list[Any], have: bytes, seed: int) -> None:
    chance, now = random.Random(seed), 0.0
    gather, done = Gather(MANIFEST, have, now, chance, window=3), False
    stored = set(range(CHUNKS)) - set(Bitmap(CHUNKS, have).missing())
    for event in events:
        now += chance.choice((0.0, 0.5, 10.0))
        actions = gather.tick(now) if event == "tick" else gather.handle(event, now)
        assert not (done and actions)
        while actions:
            match actions.pop(0):
                case Store(index, data):
                    assert (
                        event.transfer == SHA
                        and data == DATA[index * 1024 : (index + 1) * 1024]
                        and index not in stored
                    )
                    stored.add(index)
                case Verify():
                    assert stored == set(range(CHUNKS))
                    whole = chance.random() < 0.5
                    stored = stored if whole else set()
                    actions += gather.verified(whole)
                case Send(Missing(sha256, wanted)):
                    assert (
                        sha256 == SHA
                        and 0 < len(wanted) <= 3
                        and not set(wanted) & stored
                        and set(wanted) < set(range(CHUNKS))
                    )
                case Done():
                    done = True
                case action:
                    raise AssertionError(action)


def test_a_transfer_of_the_most_chunks_takes_no_time_for_each_message() -> None:
    manifest = Manifest("o", 2**20 * 1024, SHA, 1024)
    sender, receiver = Sender("t", manifest), Receiver("t", manifest)
    sender.handle(Grant("t", 1024, b""), 0.0)
    data = bytes(1024)
    began = time.thread_time()
    for index in range(200):
        for action in receiver.handle(Chunk("t", index, zlib.crc32(data), data), 0.0):
            if isinstance(action, Send):
                assert len(sender.handle(action.message, 0.0)) == 1  # type: ignore[arg-type]
    assert time.thread_time() - began < 2.0
