# SPDX-License-Identifier: Apache-2.0
"""What a few bytes can claim, and what a name can do: refused before it costs anything or reaches a file."""

from __future__ import annotations

import json
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest
from fuzz.samples import MANIFEST, PLAN, SHA, SHAPES, held_state, make_samples

from coordinator.job import Job
from edge_client.node import Node
from fedcore.config.reading import load_config, parse_size
from fedcore.errors import ConfigError, ExactnessError, FedkrsoError, MalformedMessage, ModelError
from fedcore.fields.checked import MAX_CHUNKS, clean_text
from fedcore.fields.manifest import Manifest
from fedcore.fields.unpacking import unpack
from fedcore.model.state import PublishedState
from fedcore.model.update import check_update
from fedcore.numbers.records import read_header, read_records, write_records
from fedcore.registry import CODECS
from fedcore.weights.checkpoint import Checkpoint, read_table
from fedcore.wire.bitmap import Bitmap
from fedcore.wire.codec import decode, encode
from fedcore.wire.files import PartialFile
from fedcore.wire.messages import (
    Ack,
    Chunk,
    Commit,
    Declined,
    Envelope,
    Missing,
    Offer,
    Refuse,
    Status,
    Telemetry,
    Topics,
)
from fedcore.wire.transfer import Receiver, Sender

SAMPLES = make_samples()
SIGNATURE = bytes(64)


@contextmanager
def at_most(limit_bytes: int) -> Iterator[None]:
    """The block's peak of memory stays below a limit."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit_bytes, f"{peak:,} bytes"


# Messages


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


# Transfers


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


# Files


def changed_file(path: Path, sample: bytes, change: Callable[[list[Any]], None]) -> Path:
    unpacker = msgpack.Unpacker(None, raw=False)
    unpacker.feed(sample)
    objects = list(unpacker)
    change(objects)
    path.write_bytes(b"".join(map(msgpack.packb, objects)))
    return path


@pytest.mark.parametrize(
    ("side", "match"), [(2**10, "a record of 1024 x 1024 is outside the limits"), (2**13, "exceeds max_bin_len")]
)
def test_a_few_bytes_that_claim_millions_of_numbers_are_not_unpacked(side: int, match: str, tmp_path: Path) -> None:
    bomb = zlib.compress(bytes(side * side), 9)

    def change(objects: list[Any]) -> None:
        objects[1] |= {
            "rows": side,
            "columns": side,
            "coding": "zlib-shuffled",
            "data": bomb,
            "exponent": zlib.compress(bytes(side)),
        }

    path = changed_file(tmp_path / "u", SAMPLES["update"][0], change)
    assert path.stat().st_size < side * side / 500
    with at_most(1_000_000), pytest.raises(FedkrsoError, match=match):
        check_update(path, PLAN, "r", "a")
    with at_most(1_000_000), pytest.raises(MalformedMessage, match=match):
        list(read_records(path, largest=60))


def test_data_that_inflates_beyond_its_shape_is_refused(tmp_path: Path) -> None:
    for data in (
        zlib.compress(bytes(2**20), 9),
        zlib.compress(bytes(40)) + b"more",
        zlib.compress(bytes(39)),
        zlib.compress(bytes(40))[:-1],
    ):

        def change(objects: list[Any], data: bytes = data) -> None:
            objects[1] |= {"coding": "zlib-shuffled", "data": data}

        path = changed_file(tmp_path / "u", SAMPLES["update"][0], change)
        with at_most(1_000_000), pytest.raises(MalformedMessage, match="l: compressed data"):
            list(read_records(path, largest=60))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"bits": 8.0}, "wrong type"),
        ({"rows": True}, "wrong type"),
        ({"rows": 2**63}, "outside the limits"),
        ({"rows": -5, "columns": -8}, "outside the limits"),
        ({"columns": 0}, "outside the limits"),
        ({"coding": ["raw"]}, "cut short or damaged"),
        ({"data": "text"}, "wrong type"),
        ({"exponent": zlib.compress(bytes([127] * 5))}, "an exponent is outside -32 to 31"),
        ({"name": ""}, "name has 0"),
        ({"name": "x" * 541}, "name has 541"),
        ({"name": "x" * 5000}, "cut short or damaged"),
        ({"extra": {"nested": 1}}, "cut short or damaged"),
        ({"difference": 1}, "wrong type"),
    ],
)
def test_records_with_a_wrong_field_are_refused(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    path = changed_file(tmp_path / "u", SAMPLES["update"][0], lambda objects: objects[1].update(change))
    with pytest.raises(MalformedMessage, match=match):
        list(read_records(path, largest=60))


@pytest.mark.parametrize(
    "raw",
    [
        b"\xdd\x00\x00\x04\x00" * 400,
        b"\x81\xa1a" * 500,
        b"\xdd\x7f\xff\xff\xff",
        b"\xc6\x7f\xff\xff\xff",
        b"\x81\xa6format\xd9\xff" + b"x" * 80_000,
    ],
    ids=["lists", "maps", "long list", "long bytes", "long text"],
)
def test_headers_promise_nothing(raw: bytes, tmp_path: Path) -> None:
    good = SAMPLES["records"][0]
    for content in (raw, good[:10] + raw, msgpack.packb({"format": "x"}) + raw):
        (tmp_path / "u").write_bytes(content)
        with at_most(9_000_000), pytest.raises(MalformedMessage):
            read_header(tmp_path / "u", "x")
            list(read_records(tmp_path / "u", largest=60))


def test_a_difference_to_a_state_of_another_rank_is_no_difference(tmp_path: Path) -> None:
    held_state(1).write(tmp_path / "o", previous=held_state(0))
    other = of_next_rank(held_state(0))
    with pytest.raises(ExactnessError, match="a difference to version 0, this node holds 0"):
        PublishedState.read(tmp_path / "o", SHAPES, previous=other)


def of_next_rank(state: PublishedState) -> PublishedState:
    return PublishedState(state.version, state.seeds, state.rank + 1, state.entries)


@pytest.mark.parametrize("change", [{"rank": -1}, {"rank": 2**62}, {"seeds": [-1]}, {"version": -1}, {"version": True}])
def test_published_states_with_a_wrong_header_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = changed_file(tmp_path / "o", SAMPLES["published_state"][0], lambda objects: objects[0].update(change))
    with pytest.raises(MalformedMessage, match="a published state's header"):
        PublishedState.read(path, SHAPES)


def test_record_files_end_where_they_say(tmp_path: Path) -> None:
    write_records(tmp_path / "u", {"format": "x"}, [])
    good = (tmp_path / "u").read_bytes()
    for bad in (good[:-1], good + b"\0", good[:-1] + b"\x01", good[:-5] + msgpack.packb({"end": 0, "more": 1})):
        (tmp_path / "u").write_bytes(bad)
        with pytest.raises(MalformedMessage):
            list(read_records(tmp_path / "u"))


# Checkpoints


def safetensors(table: Any, data: bytes = bytes(100), length: int | None = None) -> bytes:
    header = table if isinstance(table, bytes) else json.dumps(table).encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "not safetensors|not a safetensors"),
        (safetensors({}, length=2**63), "cut short or not safetensors"),
        (safetensors({}, length=2**24), "cut short or not safetensors"),
        (safetensors(b"[" * 10_000), "not a safetensors file"),
        (safetensors(b'{"a":' * 10_000), "not a safetensors file"),
        (safetensors(b'{"\xff":1}'), "not a safetensors file"),
        (safetensors({"a": entry([26], 0, 104)}), "cut short"),
        (safetensors({"a": entry([-25], 100, 0)}), "not a safetensors file"),
        (safetensors({"a": entry([1], -4, 0)}), "not a safetensors file"),
        (safetensors({"a": entry([2**32, 2**32], 0, 0)}), "cut short"),
        (safetensors({"a": entry([2**62, 4], 0, 0)}), "not a safetensors file"),
        (safetensors({"a": entry([4], 0, 15)}), "cut short"),
        (safetensors({"a": entry([4], 0, 16), "b": entry([4], 8, 24)}), "b: two tensors overlap"),
        (safetensors({"a": entry([4], 0, 16, "Q9" * 500)}), "is not supported"),
        (safetensors({"a": entry([1] * 33, 0, 4)}), "not a safetensors file"),
    ],
)
def test_tables_that_lie_are_refused(content: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    with at_most(3_000_000), pytest.raises(ModelError, match=match):
        read_table(tmp_path / "m.safetensors")


def test_tables_with_gaps_and_empty_tensors_are_read(tmp_path: Path) -> None:
    table = {"b": entry([4], 16, 32), "a": entry([2], 0, 8), "e": entry([0, 7], 8, 8), "__metadata__": {"format": "pt"}}
    (tmp_path / "m.safetensors").write_bytes(safetensors(table))
    assert {name: found.shape for name, found in read_table(tmp_path / "m.safetensors").items()} == {
        "a": (2,),
        "b": (4,),
        "e": (0, 7),
    }


@pytest.mark.parametrize("content", [b"[]", b"{", b"[" * 100_000, b'{"a":"\xff"}', b"null"])
def test_model_configurations_that_are_none_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match="config.json: not"):
        Checkpoint(tmp_path)


# Job and node files

BROKER = '[broker]\nurl = "mqtts://b"\n'
NODE = f'node = "a"\nrun = "r"\nmodel_folder = "m"\n[data]\nsource = "d"\n{BROKER}'


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a = " + "[" * 5000, "not TOML"),
        ("a = " + "9" * 5000, "not TOML"),
        ("a = " + "9" * 30, "more than 64 bits"),
        ("threads = nan\n" + NODE, "threads: nan is not a number"),
        ("[data.arguments]\nx = [1, -inf]", "data.arguments.x: -inf is not a number"),
        (r'folder = "a\u0000b"', "folder: a text with a zero byte"),
        ("#" * 2**20 + "\n", "more than 1048576 bytes"),
        ('"' + "`" * 20_000 + '" = 1\n' + NODE, "unknown"),
        ('folder = "~nobody-of-that-name/x"\n' + NODE, "cannot be a path"),
        ("node = '''\n\x1b[2J'''", "."),
        ("\udcff", "not TOML"),
    ],
)
def test_configuration_files_are_refused_in_one_line(text: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "n.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=match) as refused:
        load_config(tmp_path / "n.toml", Node)
    assert refused.value.one_line().isprintable()


def test_numbers_that_are_none_do_not_pass_a_check_for_positive_ones(tmp_path: Path) -> None:
    text = f'run = "r"\n[model]\nfolder = "m"\n[task]\nkind = "regression"\n[round]\ndeadline_seconds = nan\n{BROKER}'
    (tmp_path / "j.toml").write_text(text)
    with pytest.raises(ConfigError, match="round.deadline_seconds: nan is not a number"):
        load_config(tmp_path / "j.toml", Job)


@pytest.mark.parametrize("text", ["9" * 400, " " * 100_000 + "!", "1" + " " * 100_000 + "!", "", "1e5", "-1", "1 PiB"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        parse_size(text)


def test_the_samples_hold_what_they_claim(tmp_path: Path) -> None:
    for index, sample in enumerate(SAMPLES["records"]):
        (tmp_path / "u").write_bytes(sample)
        found = list(read_records(tmp_path / "u", kinds=CODECS.names()))
        assert [record.name for record in found] == ["l", "k", "head.bias"] and found[0].bits == (4, 8, 16, 32)[index]
        assert np.any(found[0].part.values())
