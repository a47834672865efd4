# SPDX-License-Identifier: Apache-2.0
"""Kinds of numbers on the wire: what is sent is what is summed, in integers; what is damaged or too large is refused in
one line."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fedcore.errors import ConfigError, MalformedMessage, UpdateRefused
from fedcore.methods import server_half
from fedcore.methods.whole.fedavg import FedAvgSettings
from fedcore.numbers.accumulator import Floats, RowScaled, RunningSum, quantise_rows, squared_norm, within_bounds
from fedcore.numbers.clip import Clip
from fedcore.numbers.codecs import encoded
from fedcore.numbers.coding import Coding
from fedcore.numbers.records import Record, pack_record, read_records, unpack_record, write_records
from fedcore.registry import CODECS

CODINGS = [
    Coding("integers", 4),
    Coding("integers", 8),
    Coding("integers", 16),
    Coding("floats", 16),
    Coding("floats", 32),
]
CODINGS += [Coding("sparse", 8, 0.1), Coding("sparse", 4, 0.003), Coding("sparse", 16, 1.0)]
KINDS = CODECS.names()
numbers = st.floats(-128, 128, width=32)
matrices = arrays(
    np.float32, array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.one_of(st.just(0.0), numbers)
)


def packed(values: np.ndarray[Any, Any], coding: Coding) -> dict[str, Any]:
    """As it crosses the wire, msgpack and back."""
    record = Record("l", encoded(values, coding, "l"), coding.bits, kind=coding.kind)
    found: dict[str, Any] = msgpack.unpackb(msgpack.packb(pack_record(record)))
    return found


@given(values=matrices, coding=st.sampled_from(CODINGS))
def test_what_is_sent_arrives(values: np.ndarray[Any, Any], coding: Coding) -> None:
    part = encoded(values, coding, "l")
    raw = packed(values, coding)
    found = unpack_record(raw, kinds=KINDS)
    assert (found.name, found.kind, found.bits, found.part.shape) == ("l", coding.kind, coding.bits, values.shape)
    assert np.array_equal(found.part.values(), part.values())
    assert all(
        np.array_equal(found.part.units(slice(i, i + 1)), part.units(slice(i, i + 1))) for i in range(len(values))
    )
    assert within_bounds(found.part)
    # Exponents and msgpack's own apart; an index may grow by some bytes when it does not compress.
    assert len(raw["data"]) + len(raw.get("index", b"")) <= coding.most_bytes(values.size) + 16


@given(values=matrices)
def test_float32_travels_as_it_is_and_bfloat16_rounded_once(values: np.ndarray[Any, Any]) -> None:
    wide, narrow = (encoded(values, Coding("floats", bits), "l").values() for bits in (32, 16))
    assert np.array_equal(wide, values)
    assert (np.abs(narrow - values) <= np.abs(values) * 2.0**-8 + 2.0**-134).all() and not (
        narrow.view(np.uint32) & 0xFFFF
    ).any()


@given(values=matrices)
def test_a_float_counts_as_the_nearest_multiple_of_2_to_minus_32(values: np.ndarray[Any, Any]) -> None:
    units = Floats(values).units(slice(None))
    for value, unit in zip(values.flat, units.flat, strict=True):
        # Python's rounding of a fraction is exact, half to even.
        assert int(unit) == round(Fraction(float(value)) * 2**32)


@given(values=matrices, density=st.floats(0.001, 1))
def test_top_k_sends_the_largest_and_no_more(values: np.ndarray[Any, Any], density: float) -> None:
    coding = Coding("sparse", 16, density)
    part = encoded(values, coding, "l")
    sent = part.values() != 0
    assert sent.sum() <= coding.kept(values.size)
    left = np.abs(np.where(sent, 0, values)).max()
    if sent.any():
        # What rounds to zero within its row is not sent, however large it is elsewhere.
        finest = 2.0 ** part.exponent.astype(np.float64)[:, None]  # type: ignore[attr-defined]
        assert (np.abs(values)[sent] >= np.minimum(left, np.broadcast_to(finest, values.shape)[sent]) / 2).all()
        assert np.allclose(part.values()[sent], values[sent], rtol=0, atol=finest.max())


def test_of_equal_numbers_the_first_are_sent() -> None:
    part = encoded(np.full((4, 5), -0.25, np.float32), Coding("sparse", 8, 0.35), "l")
    assert np.flatnonzero(part.values()).tolist() == list(range(7))


@given(
    parts=st.lists(
        st.tuples(arrays(np.float32, (3, 4), elements=numbers), st.sampled_from(CODINGS), st.integers(1, 1000)),
        max_size=6,
    )
)
def test_sums_are_exact_in_any_order(parts: list[tuple[np.ndarray[Any, Any], Coding, int]]) -> None:
    made = [(encoded(values, coding, "l"), weight) for values, coding, weight in parts]
    totals: list[Any] = []
    for order in (made, made[::-1]):
        total = RunningSum({"l": (3, 4)})
        for part, weight in order:
            total.add_examples(weight)
            total.add("l", part, weight)
        totals.append(dict(total.means())["l"])
    assert np.array_equal(*totals)
    exact = sum(np.array([[int(u) * w for u in row] for row in p.units(slice(None))], object) for p, w in made)
    weight = sum(w for _, w in made)
    if made:
        assert totals[0].tolist() == [[round(Fraction(int(entry), weight)) for entry in row] for row in exact]


@given(values=matrices, coding=st.sampled_from(CODINGS), numerator=st.integers(0, 2**16 - 1))
def test_norms_are_exact_and_clips_count(values: np.ndarray[Any, Any], coding: Coding, numerator: int) -> None:
    part = encoded(values, coding, "l")
    units = [int(unit) for unit in part.units(slice(None)).flat]
    assert squared_norm(part) == sum(unit**2 for unit in units)
    total, clip = RunningSum({"l": part.shape}), Clip(numerator, 16)
    total.add_examples(1)
    total.add("l", part, 1, clip=clip)
    found = dict(total.means())["l"].reshape(-1).tolist()
    assert found == [abs(unit) * numerator // 2**16 * (1 if unit >= 0 else -1) for unit in units]


@pytest.mark.parametrize("coding", CODINGS, ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 129.0, -1e30])
def test_what_diverged_is_not_sent(bad: float, coding: Coding) -> None:
    values = np.zeros((20, 30), np.float32)
    values[3, 4] = bad
    with pytest.raises(UpdateRefused, match="layer: an accumulator (is not finite|reaches)"):
        encoded(values, coding, "layer")


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 200.0])
def test_floats_that_are_not_finite_are_refused_and_large_ones_are_out_of_bounds(bad: float, bits: Any) -> None:
    raw = pack_record(Record("l", Floats(np.array([[1.0, bad]], np.float32)), bits, kind="floats"))
    if np.isfinite(bad):
        assert not within_bounds(unpack_record(raw, kinds=KINDS).part)
        return
    with pytest.raises(MalformedMessage, match="l: a number is not finite"):
        unpack_record(raw, kinds=KINDS)


@given(coding=st.sampled_from(CODINGS), seed=st.integers(0, 9), data=st.data())
def test_damaged_bytes_are_refused_in_one_line_or_are_other_numbers_within_the_shape(
    coding: Coding, seed: int, data: st.DataObject
) -> None:
    values = np.random.default_rng(seed).normal(size=(6, 9)).astype(np.float32)
    raw = packed(values, coding)
    key = data.draw(
        st.sampled_from([key for key, value in raw.items() if isinstance(value, bytes | int) and key != "difference"])
    )
    if isinstance(raw[key], bytes):
        changed = bytearray(raw[key])
        place = data.draw(st.integers(0, max(0, len(changed) - 1)))
        changed[place : place + 1] = data.draw(st.binary(max_size=3))
        raw[key] = bytes(changed)
    else:
        raw[key] = data.draw(st.integers(-(2**40), 2**40) | st.integers(-2, 70))
    try:
        found = unpack_record(raw, largest=60, kinds=KINDS)
    except MalformedMessage as error:
        assert "\n" not in str(error) and len(str(error)) < 200
        return
    assert np.isfinite(found.part.values()).all() and found.part.values().size <= 60


@contextmanager
def at_most(size_bytes: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size_bytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"count": 2**30}, "outside the limits"),
        ({"count": -1}, "outside the limits"),
        ({"count": True}, "wrong type"),
        ({"index_bytes": 2**30}, "outside the limits"),
        ({"index_bytes": 0, "count": 0}, "does not hold 0 bytes"),
        ({"index": zlib.compress(bytes(2**24), 9)}, "does not hold"),
        ({"index": zlib.compress(b"\xff" * 9 + b"\xfe")}, "the places of 1 numbers where 10 of 100 belong"),
        ({"index": zlib.compress(b"\x0b" * 10)}, "the places of 10 numbers where 10 of 100 belong"),
        ({"data": zlib.compress(bytes(2**24), 9), "coding": "zlib-shuffled"}, "does not hold 10 bytes"),
        ({"data": b"x" * 11, "coding": "raw"}, "11 bytes of numbers where 10 belong"),
        ({"data": b"\x80" * 10, "coding": "raw"}, "outside the symmetric range"),
        ({"kind": "floats"}, "wrong type"),
        ({"kind": "other"}, "a kind that does not belong here"),
        ({"kind": ["sparse"]}, "wrong type"),
    ],
)
def test_sizes_are_checked_before_anything_is_made_of_them(change: dict[str, Any], match: str) -> None:
    raw = packed(np.linspace(-1, 1, 100, dtype=np.float32).reshape(10, 10), Coding("sparse", 8, 0.1))
    assert (raw["count"], raw["index_bytes"]) == (10, 10)
    with at_most(200_000), pytest.raises(MalformedMessage, match=match):
        unpack_record(raw | change, largest=100, kinds=KINDS)


_FLOATS = ("floats",)


def test_a_kind_that_is_not_asked_for_is_not_read(tmp_path: Path) -> None:
    part = encoded(np.ones((2, 3), np.float32), Coding("floats", 32), "l")
    write_records(tmp_path / "u", {"format": "x"}, [Record("l", part, 32, kind="floats")])
    with pytest.raises(MalformedMessage, match="l: a record of a kind that does not belong here"):
        list(read_records(tmp_path / "u"))
    assert [record.kind for record in read_records(tmp_path / "u", kinds=_FLOATS)] == ["floats"]


def test_golden_bytes() -> None:
    """What was written once is read for ever; zlib may pack the same in other bytes."""
    exponents = zlib.compress(bytes([253, 255]), 6)
    head = {"name": "l", "rows": 2, "columns": 4, "difference": False, "coding": "raw"}
    values = np.array([[0, 0.625, 0, -0.375], [0, 0, 0, 63.5]], np.float32)
    wide = values.astype("<f4").tobytes()
    half = bytes.fromhex("0000203f0000c0be0000000000007e42")
    golden = [
        (
            {
                "kind": "sparse",
                "bits": 8,
                "exponent": exponents,
                "count": 3,
                "index_bytes": 3,
                "index": zlib.compress(b"\1\1\3"),
                "data": bytes([5, 253, 127]),
            },
            Coding("sparse", 8, 0.5),
        ),
        ({"kind": "floats", "bits": 32, "data": wide}, Coding("floats", 32)),
        ({"kind": "floats", "bits": 16, "data": half}, Coding("floats", 16)),
        ({"bits": 8, "exponent": exponents, "data": bytes([0, 5, 0, 253, 0, 0, 0, 127])}, Coding("integers", 8)),
        # High bytes, then low ones, of 2 q or -2 q - 1, column after column.
        (
            {
                "bits": 16,
                "exponent": zlib.compress(bytes([253, 255]), 6),
                "coding": "zlib-columns",
                "data": zlib.compress(bytes(8) + bytes([0, 0, 10, 0, 0, 0, 5, 254])),
            },
            None,
        ),
    ]
    for raw, coding in golden:
        assert np.array_equal(unpack_record(head | raw, kinds=KINDS).part.values(), values)
        if coding is None:
            continue
        found = packed(values, coding)
        plain = {key: value for key, value in found.items() if key not in ("data", "coding", "exponent", "index")}
        assert plain == {key: value for key, value in (head | raw).items() if key in plain}
    assert bytes.fromhex("0000203f") == b"\0\0" + bytes([0x20, 0x3F])
    # 255 and more between two numbers.
    far = np.zeros((1, 1000), np.float32)
    far[0, [0, 1, 256, 257 + 255, 999]] = 1.0
    raw = packed(far, Coding("sparse", 8, 0.005))
    assert isinstance(raw["index"], bytes)
    assert zlib.decompress(raw["index"]) == bytes([0, 0, 254, 255, 0, 255, 231])
    assert np.array_equal(unpack_record(raw, kinds=KINDS).part.values(), far)


def test_the_index_costs_about_what_it_must() -> None:
    """Bits for the place of a number: what was measured against the entropy of its being there."""
    chance = np.random.default_rng(0)
    for density, most in ((0.1, 1.03), (0.01, 1.03), (0.001, 1.16)):
        values = chance.normal(size=(500, 2000)).astype(np.float32)
        raw = packed(values, Coding("sparse", 8, density))
        least = -(density * np.log2(density) + (1 - density) * np.log2(1 - density)) / density
        assert 8 * len(raw["index"]) / raw["count"] < most * least


@pytest.mark.parametrize(("bits", "most"), [(16, 16.2), (12, 12.4), (10, 10.6), (8, 8.3)])
def test_an_published_state_costs_about_the_bits_of_the_one_subspace_that_changed(bits: int, most: float) -> None:
    values = np.random.default_rng(0).normal(size=(384, 16))
    q = np.zeros((384, 80), np.int16)
    q[:, 16:32] = np.rint(values / np.abs(values).max(axis=1, keepdims=True) * (2 ** (bits - 1) - 1))
    raw = pack_record(Record("l", RowScaled(q, np.zeros(384, np.int8)), 16))
    assert np.array_equal(unpack_record(raw).integers.q, q)
    assert 8 * len(raw["data"]) / values.size < most


@given(
    q=arrays(
        np.int16,
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        elements=st.sampled_from([0, 0, 0, 1, -1, 300, 32767, -32768]),
    )
)
def test_differences_of_16_bits_arrive(q: np.ndarray[Any, Any]) -> None:
    raw = pack_record(Record("l", RowScaled(q, np.zeros(len(q), np.int8)), 16, difference=True))
    assert np.array_equal(unpack_record(raw).integers.q, q)
    damaged = raw | {"coding": "zlib-columns", "data": zlib.compress(bytes(2 * q.size + 1))}
    with pytest.raises(MalformedMessage, match=f"does not hold {2 * q.size} bytes"):
        unpack_record(damaged)


def test_a_job_names_a_codec() -> None:
    found = {
        name: server_half(FedAvgSettings(codec=name)).training(1, 0)
        for name in ("", "int4", "int16", "float32", "bfloat16", "top-k")
    }
    assert [str(training.coding("l")) for training in found.values()] == [
        "8 bits",
        "4 bits",
        "16 bits",
        "32 bits as floats",
        "16 bits as floats",
        "8 bits, only the largest",
    ]
    assert found["top-k"].coding("l").density == 0.01 and "top-k of 0.01" in FedAvgSettings(codec="top-k").described()
    assert server_half(FedAvgSettings(codec="top-k", bits=4)).training(1, 0).coding("l").bits == 4
    mistakes: list[dict[str, Any]] = [
        {"codec": "int8", "bits": 16},
        {"codec": "top-k", "density": 0.0},
        {"codec": "top-k", "density": 1.5},
    ]
    for wrong in mistakes:
        with pytest.raises(ConfigError, match="method"):
            FedAvgSettings(**wrong)


def test_integers_are_as_they_were() -> None:
    """Records of integers say nothing of kinds, so older files and nodes are understood."""
    raw = pack_record(Record("l", quantise_rows(np.ones((2, 3), np.float32), 8), 8))
    assert list(raw) == ["name", "rows", "columns", "bits", "difference", "coding", "exponent", "data"]
