# SPDX-License-Identifier: Apache-2.0
"""What a few bytes of a file can claim: record files, checkpoints, job and node files are refused before they cost
anything."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from coordinator.job import Job
from edge_client.node import Node
from fedcore.config.reading import load_config, parse_size
from fedcore.errors import ConfigError, ExactnessError, FedkrsoError, MalformedMessage, ModelError
from fedcore.model.state import PublishedState
from fedcore.model.update import check_update
from fedcore.numbers.records import read_header, read_records, write_records
from fedcore.registry import CODECS
from fedcore.weights.checkpoint import Checkpoint, read_table
from tests.fuzz.budgets import SAMPLES, at_most
from tests.fuzz.samples import PLAN, SHAPES, held_state


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
        ("\udcff", "not UTF-8"),
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
