# SPDX-License-Identifier: Apache-2.0
"""What a few bytes of a message can claim, and what a name can do: refused before it costs anything or reaches a
file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest

from fedcore.errors import FedkrsoError, MalformedMessage
from fedcore.fields.checked import MAX_CHUNKS, clean_text
from fedcore.fields.manifest import Manifest
from fedcore.fields.unpacking import unpack
from fedcore.wire.bitmap import Bitmap
from fedcore.wire.codec import decode, encode
from fedcore.wire.files import PartialFile
from fedcore.wire.messages import (
    Ack,
    Chunk,
    Commit,
    Declined,
    Envelope,
    Grant,
    Missing,
    Offer,
    Refuse,
    Status,
    Telemetry,
    Topics,
)
from fedcore.wire.transfer import Receiver, Sender
from tests.fuzz.budgets import SAMPLES, at_most
from tests.fuzz.samples import MANIFEST, PLAN, SHA

SIGNATURE = bytes(64)


@pytest.mark.parametrize(
    "packed",
    [
        b"\xdd\x00\x01\x86\x00" * 400,
        b"\xdd\x7f\xff\xff\xff" * 20,
        b"\xdf\x7f\xff\xff\xff",
        b"\xc6\x7f\xff\xff\xff",
        b"\xc9\x7f\xff\xff\xff\x01",
        b"\x91" * 100_000 + b"\x90",
        b"\xdd\x00\x01\x86\x9f" + b"\x90" * 99_999,
        b"\xdc\x0f\xff" + (b"\xdc\x00\x40" + b"\x80" * 64) * 4095,
        msgpack.packb({"version": 1, "x" * 100_000: 0}),
        msgpack.packb({"version": "x" * 100_000}),
        msgpack.packb({"version": 1, "body": {"type": "\x1b[2J" * 10_000}}),
    ],
    ids=[
        "lists promised",
        "a list of two billions",
        "a map promised",
        "bytes promised",
        "ext promised",
        "deep",
        "empty lists",
        "lists of maps",
        "long key",
        "long version",
        "long kind",
    ],
)
def test_a_message_costs_in_proportion_to_its_bytes(packed: bytes) -> None:
    with at_most(8_000_000), pytest.raises(MalformedMessage) as unpacked:
        unpack(packed)
        raise MalformedMessage("msgpack, but not a message")
    assert unpacked.value.one_line().isprintable()
    with at_most(8_000_000), pytest.raises(MalformedMessage) as refused:
        decode(SIGNATURE + packed)
    assert len(refused.value.one_line()) <= 2000 and refused.value.one_line().isprintable()


def raw_message(change: Callable[[dict[str, Any]], None], body: Any) -> bytes:
    envelope = Envelope(run="r", round=1, node="a", body=body, expires_at=5.0)
    raw = msgspec.to_builtins(envelope, builtin_types=(bytes,))
    change(raw)
    return SIGNATURE + msgpack.packb(raw)


TELEMETRY = Telemetry(
    state="training",
    step=1,
    steps=2,
    loss=None,
    agent_rss_bytes=1,
    agent_peak_rss_bytes=1,
    worker_bytes=None,
    peak_bytes=1,
    budget_bytes=1,
    uplink_bytes=1,
    downlink_bytes=1,
)


NAN, INF = float("nan"), float("inf")


BAD_NAMES = ["..", "../x", "/etc", "a/b", "a\0", "+", "#", "a+", ".x", "a b", "x" * 65, "\u202e", "a\n", "ａ"]


WRONG: list[tuple[Any, str, list[Any]]] = [
    (Commit("t"), "run", ["", *BAD_NAMES]),
    (Commit("t"), "node", BAD_NAMES),
    (Commit("t"), "round", [-1, 2**31, 2**64 - 1, 1.0, True, "1"]),
    (Commit("t"), "expires_at", [NAN, INF, -1.0, 1e300]),
    (Commit("t"), "sequence", [-1]),
    (Commit("t"), "correlation", ["x" * 129]),
    (Commit("t"), "body.transfer", ["", "x" * 129, *[n for n in BAD_NAMES if len(n) < 60]]),
    (Offer("t", MANIFEST), "body.way", ["", "broker", 1, None]),
    (Grant("t", 1, b""), "body.address", ["x" * 2049, 1]),
    (Offer("t", MANIFEST), "body.manifest.size_bytes", [-1, 2**60, 2**36 + 1]),
    (Offer("t", MANIFEST), "body.manifest.chunk_bytes", [0, -1, 1_000_001, 2**63]),
    (Offer("t", msgspec.structs.replace(MANIFEST, size_bytes=2**30)), "body.manifest.chunk_bytes", [1, 1000]),
    (
        Offer("t", MANIFEST),
        "body.manifest.sha256",
        ["", "ab", "../" * 21 + "a", SHA[:-1] + "/", SHA.upper(), SHA + "\n"],
    ),
    (Offer("t", MANIFEST), "body.manifest.name", ["", *[n for n in BAD_NAMES if len(n) < 60]]),
    (Chunk("t", 0, 0, b""), "body.index", [-1, MAX_CHUNKS]),
    (Chunk("t", 0, 0, b""), "body.crc32", [-1, 2**32]),
    (Chunk("t", 0, 0, b""), "body.data", [bytes(1_000_001), "text"]),
    (Ack("t", b""), "body.have", [bytes(MAX_CHUNKS // 8 + 1)]),
    (Missing(SHA, ()), "body.sha256", ["x", "../" * 21 + "a"]),
    (Missing(SHA, ()), "body.indices", [[-1], [MAX_CHUNKS], list(range(1025)), [0.5]]),
    (TELEMETRY, "body.worker_bytes", [-(2**63), -1, 2**64 - 1]),
    (TELEMETRY, "body.budget_bytes", [-1]),
    (TELEMETRY, "body.loss", [NAN, INF, -INF, 1e300]),
    (TELEMETRY, "body.pressure_percent", [NAN]),
    (Status(online=True), "body.version", [-2, 2**31]),
    (PLAN, "body.deadline_at", [NAN, INF, -1]),
    (PLAN, "body.cohort", [["a", ".."], ["a/b"], [""]]),
    (PLAN, "body.round", [-1, 2**63 - 1]),
    (PLAN, "body.base_digest", ["x"]),
    (PLAN, "body.checksums", [[], ["x" * 16] * 2, ["0" * 16] * 3]),
    (PLAN, "body.task.labels", ["os:getcwd"]),
    (PLAN, "body.training.rank", [0, -1, 2**40]),
    (PLAN, "body.training.seeds", [[], [-1], [1] * 1025]),
    (PLAN, "body.training.learning_rate", [0.0, -1.0, NAN, INF]),
    (PLAN, "body.training.interval_steps", [0, -1]),
    (PLAN, "body.training.batch_size", [0, 2**40]),
    (
        PLAN,
        "body.model_schema.layers",
        [[{"name": "l", "rows": 2**31 - 1, "columns": 2}] * 2, [{"name": "", "rows": 1, "columns": 1}] * 2],
    ),
    (PLAN, "body.model_schema.tensors", [[{"name": "t", "shape": [2**20, 2**20], "in_checkpoint": False}]]),
    (PLAN, "body.objects", [[{"version": 1, "generation": 0, "base_version": None, "digest": "x", "manifest": {}}]]),
]


@pytest.mark.parametrize(("body", "path", "value"), [(b, p, v) for b, p, values in WRONG for v in values])
def test_fields_outside_their_limits_are_refused(body: Any, path: str, value: Any) -> None:
    def change(raw: dict[str, Any]) -> None:
        *folders, last = path.split(".")
        for key in folders:
            raw = raw[key]
        raw[last] = value

    assert decode(raw_message(lambda raw: None, body)).body == body
    with pytest.raises(MalformedMessage):
        decode(raw_message(change, body))


def test_words_for_people_are_one_short_printable_line() -> None:
    evil = "a\x1b[2J\r\nb\u202e" + "x" * 10_000
    for body in (Declined(evil), Refuse("t", evil)):
        again = decode(encode(Envelope(run="r", round=1, node="a", body=body))).body
        assert again == body and again.reason.startswith("a?[2J b?xxx") and len(again.reason) == 1000  # type: ignore[union-attr]
    # A peer that does not clean its words is not refused: its words are cleaned here.
    raw = raw_message(lambda raw: raw["body"].update(reason=evil), Declined("x"))
    assert decode(raw).body == Declined(evil)
    assert Status(online=True, device=evil).device.isprintable()
    assert clean_text("Grüße, 日本") == "Grüße, 日本"
    assert (
        len(FedkrsoError(evil, place=evil, remedy=evil).one_line()) <= 2000
        and FedkrsoError(evil).one_line().isprintable()
    )


def test_a_node_is_named_by_topics_of_the_run_alone() -> None:
    topics = Topics("r")
    assert topics.node_of("fedkrso/2/r/node/a/status") == "a"
    for topic in (
        "node/a/status",
        "fedkrso/2/s/node/a/status",
        "x/fedkrso/2/r/node/a/status",
        "fedkrso/2/r/node/a",
        "fedkrso/2/r/node//up",
    ):
        assert topics.node_of(topic) is None


def test_the_largest_transfer_there_may_be_is_handled_in_no_time() -> None:
    manifest = Manifest("o", MAX_CHUNKS * 1024, SHA, 1024)
    with pytest.raises(ValueError, match="more than"):
        msgspec.structs.replace(manifest, size_bytes=manifest.size_bytes + 1)
    with pytest.raises(ValueError, match="chunks of 0"):
        Manifest("o", 1, SHA, 0)
    with at_most(6_000_000):
        sender, have = Sender("t", manifest), bytearray(MAX_CHUNKS // 8)
        for turn in range(100):
            have[turn * 64 : turn * 64 + 64] = b"\xff" * 64
            assert len(sender.handle(Ack("t", bytes(have)), 0.0)) == 0
        receiver = Receiver("t", manifest, b"\xff" * MAX_CHUNKS)
        assert receiver.bitmap.full


def test_bitmaps_answer_for_any_number() -> None:
    bitmap = Bitmap(10, b"\xff\xff\xff")
    assert bitmap.full and 9 in bitmap and all(index not in bitmap for index in (-1, 10, 15, 2**63))


def test_a_damaged_note_of_chunks_costs_only_chunks(tmp_path: Path) -> None:
    path = tmp_path / "o"
    for note in (
        b"",
        b"\xff" * 500_000,
        msgspec.msgpack.encode((MANIFEST, b"\xff" * 200_000)),
        SAMPLES["have"][0][:-1],
        b"\x92\xa1\xff\xa0",
    ):
        (tmp_path / "o.part").write_bytes(b"x")
        (tmp_path / "o.have").write_bytes(note)
        partial = PartialFile(path, MANIFEST)
        assert len(partial.bitmap) == 0
        partial.close()
