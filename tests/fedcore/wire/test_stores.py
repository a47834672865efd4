# SPDX-License-Identifier: Apache-2.0
"""Offers and grants of a store: to peers that know of none, and in the sender's machine."""

from __future__ import annotations

import msgpack
import msgspec

from fedcore.fields.manifest import Manifest
from fedcore.wire.actions import Put, Send, SendChunk
from fedcore.wire.messages import Grant, Offer
from fedcore.wire.transfer import Sender

MANIFEST = Manifest("u", 10, "ab" * 32, 4)


class _OldOffer(msgspec.Struct, frozen=True, tag="offer"):
    transfer: str
    manifest: Manifest


class _OldGrant(msgspec.Struct, frozen=True, tag="grant"):
    transfer: str
    window: int
    have: bytes


def test_who_knows_of_no_store_reads_the_same_offers_and_grants() -> None:
    # As programs of before read what is said now, and the other way round.
    packed = lambda body: msgpack.unpackb(msgpack.packb(msgspec.to_builtins(body, builtin_types=(bytes,))))  # noqa: E731
    for way in ("store", "stored"):
        offer = msgspec.convert(packed(Offer("t", MANIFEST, way)), _OldOffer)
        assert offer == _OldOffer("t", MANIFEST)
    assert msgspec.convert(packed(Grant("t", 1, b"", "https://s3/a")), _OldGrant, builtin_types=(bytes,)).window == 1
    assert packed(Offer("t", MANIFEST)) == packed(_OldOffer("t", MANIFEST))
    assert packed(Grant("t", 1, b"a")) == packed(_OldGrant("t", 1, b"a"))
    # A node that asks for a store is granted chunks by a coordinator of before, and sends them.
    sender = Sender("t", MANIFEST, by_store=True)
    assert sender.tick(0.0) == [Send(Offer("t", MANIFEST, "store"))]
    assert sender.handle(Grant("t", 2, b"\x00"), 0.1) == [SendChunk(0), SendChunk(1)]


def test_a_put_is_waited_for_and_said_again() -> None:
    sender = Sender("t", MANIFEST, by_store=True)
    sender.tick(0.0)
    assert sender.handle(Grant("t", 1, b"", "https://s3/a"), 0.1) == [Put("https://s3/a")]
    assert sender.handle(Grant("t", 1, b"", "https://s3/b"), 0.2) == []
    # The coordinator hears that it is on its way.
    assert sender.tick(5.0) == [] and sender.tick(5.2) == [Send(Offer("t", MANIFEST, "store"))]
    assert sender.handle(Grant("t", 8, b"\x00"), 5.3) == [], "neither a second PUT nor chunks beside it"
    assert sender.put(True, 6.0) == [Send(Offer("t", MANIFEST, "stored"))]
    assert sender.handle(Grant("t", 1, b"", "https://s3/a"), 6.1) == [], "late"
    assert sender.tick(8.1) == [Send(Offer("t", MANIFEST, "stored"))]
    # It does not lie there any more.
    assert sender.handle(Grant("t", 2, b"\x01"), 8.2) == [SendChunk(1), SendChunk(2)]
    assert sender.tick(20.0) == [Send(Offer("t", MANIFEST))]
    failed = Sender("t", MANIFEST, by_store=True)
    failed.tick(0.0)
    failed.handle(Grant("t", 1, b"", "https://s3/a"), 0.1)
    assert failed.put(False, 1.0) == [Send(Offer("t", MANIFEST))] and failed.put(False, 1.1) == []
    assert failed.handle(Grant("t", 1, b"", "https://s3/a"), 1.2) == [], "it has left that way"
