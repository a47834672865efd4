# SPDX-License-Identifier: Apache-2.0
"""Deflated numbers: one stream, the same bytes by whichever library reads it, and no more bytes than zlib's own way."""

from __future__ import annotations

import zlib
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.errors import MalformedMessage
from fedcore.fields.unpacking import inflated
from fedcore.numbers import inflating
from fedcore.numbers.accumulator import quantise_rows
from fedcore.numbers.inflating import deflate, inflate
from fedcore.numbers.records import Record, pack_record


def _read(data: bytes, size_bytes: int, engine: ModuleType) -> bytes | None:
    try:
        found = inflated(data, size_bytes, engine.decompressobj)
    except engine.error:
        return None
    return found if found is not None and len(found) == size_bytes else None


@given(st.binary(max_size=300), st.integers(1, 9), st.integers(0, 400), st.binary(max_size=3), st.integers(-1, 1))
@settings(deadline=None)
def test_isal_reads_and_refuses_what_zlib_does(raw: bytes, level: int, at: int, change: bytes, more: int) -> None:
    isal = pytest.importorskip("isal.isal_zlib")
    stream = bytearray(deflate(raw, level, pairs=bool(level % 2)))
    stream[at : at + len(change)] = change
    size_bytes = max(0, len(raw) + more)
    assert _read(bytes(stream), size_bytes, isal) == _read(bytes(stream), size_bytes, zlib)


@given(st.binary(max_size=300), st.binary(min_size=1, max_size=3), st.integers(0, 300))
@settings(deadline=None)
def test_what_is_damaged_is_refused_in_one_line(raw: bytes, change: bytes, at: int) -> None:
    stream = bytearray(deflate(raw, 6))
    assert inflate(bytes(stream), len(raw), "l") == raw
    stream[at : at + len(change)] = change
    try:
        assert inflate(bytes(stream), len(raw), "l") == raw  # a change that changes nothing
    except MalformedMessage as error:
        assert error.place == "l" and "\n" not in str(error)


def test_a_stream_that_holds_more_is_not_inflated_whole() -> None:
    with pytest.raises(MalformedMessage, match="does not hold 10 bytes"):
        inflate(zlib.compress(bytes(10**7)), 10, "l")


@pytest.mark.parametrize(("bits", "share"), [(4, 0.95), (8, 0.995)])
def test_numbers_take_fewer_bytes_than_where_repetitions_are_looked_for(bits: int, share: float) -> None:
    values = np.random.default_rng(0).standard_t(3, (512, 80)).astype(np.float32) * 0.01
    values[:, 64:] = 0  # a subspace that nobody trained
    packed = pack_record(Record("l", quantise_rows(values, bits), bits))["data"]  # type: ignore[arg-type]
    raw = inflate(packed, 512 * 80 * bits // 8, "l")
    assert len(packed) < share * len(zlib.compress(raw, 9))


def test_zlib_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflating, "_ENGINE", zlib)
    assert inflate(deflate(b"abc", 6), 3, "l") == b"abc"
    with pytest.raises(MalformedMessage, match="damaged"):
        inflate(b"abc", 3, "l")
