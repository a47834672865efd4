# SPDX-License-Identifier: Apache-2.0
"""Mutations that know the formats: a valid input with one thing wrong reaches deeper than random bytes do."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import msgpack

__all__ = ["mutated"]

_VALUES: tuple[Any, ...] = (
    0,
    1,
    -1,
    2,
    7,
    255,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**60,
    2**63 - 1,
    2**63,
    2**64 - 1,
    -(2**63),
    True,
    False,
    None,
    0.0,
    8.0,
    -1.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "a",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "+",
    "#",
    "a\0b",
    "\x1b[2J",
    "x" * 300,
    "\u202e",
    b"",
    b"\xff",
    b"\x00" * 64,
    b"x" * 300,
    [],
    [[]],
    [0] * 40,
    {},
    {"a": {}},
    [-1],
    ["a"],
)
_NUMBERS = (
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xc0",
    b"\xcf" + b"\xff" * 8,
    b"\xdd\x7f\xff\xff\xff",
    b"\xdf\x7f\xff\xff\xff",
    b"\x91" * 600,
)
_WORDS = (
    b"nan",
    b"inf",
    b"-1",
    b"0",
    b"1e400",
    b"9" * 400,
    b"[" * 200,
    b'"~x/y"',
    b"'''",
    b"a.b.c",
    b"`",
    b"{}",
    b"[[a]]",
    b"\xff",
    b"\r",
)


def mutated(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """`data` with one to three things wrong; `others` lend parts of themselves."""
    for _ in range(chance.randint(1, 3)):
        kinds: list[Callable[[bytes, random.Random], bytes]] = [_flip, _cut, _double, _insert, _words]
        structured = [_msgpack, _json, lambda data, chance: _splice(data, others, chance)]
        data = chance.choice([*kinds, *structured, *structured])(data, chance)
    return data


def _place(data: bytes, chance: random.Random) -> tuple[int, int]:
    start = chance.randint(0, len(data))
    return start, min(len(data), start + chance.choice((1, 2, 4, 8, 16, 64, 1024)))


def _flip(data: bytes, chance: random.Random) -> bytes:
    out = bytearray(data or b"\0")
    for _ in range(chance.randint(1, 4)):
        out[chance.randrange(len(out))] ^= 1 << chance.randrange(8)
    return bytes(out)


def _cut(data: bytes, chance: random.Random) -> bytes:
    start, end = _place(data, chance)
    return data[:start] + data[end:] if chance.random() < 0.5 else data[:start]


def _double(data: bytes, chance: random.Random) -> bytes:
    start, end = _place(data, chance)
    return data[:end] + data[start:end] * chance.choice((1, 1, 2, 50)) + data[end:]


def _insert(data: bytes, chance: random.Random) -> bytes:
    start, end = _place(data, chance)
    return data[:start] + chance.choice(_NUMBERS) + data[start if chance.random() < 0.5 else end :]


def _words(data: bytes, chance: random.Random) -> bytes:
    start, end = _place(data, chance)
    return data[:start] + chance.choice(_WORDS) + data[start if chance.random() < 0.5 else end :]


def _splice(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    other = chance.choice(others) if others else data
    return data[: _place(data, chance)[0]] + other[_place(other, chance)[0] :]


def _msgpack(data: bytes, chance: random.Random) -> bytes:
    # Messages have a signature in front.
    skip = chance.choice((0, 0, 64))
    unpacker = msgpack.Unpacker(None, raw=False, strict_map_key=False)
    unpacker.feed(data[skip:])
    try:
        objects = list(unpacker)
        index = chance.randrange(len(objects))
        objects[index] = _tree(objects[index], chance)
        return data[:skip] + b"".join(map(msgpack.packb, objects))
    except Exception:  # noqa: BLE001 - not msgpack, or no more after the mutation: flip something instead
        return _flip(data, chance)


def _json(data: bytes, chance: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = 8 if data[:1] != b"{" and length <= len(data) else 0
    text = data[8 : 8 + length] if header else data
    try:
        made = json.dumps(_tree(json.loads(text), chance), default=str).encode()
    except Exception:  # noqa: BLE001 - not JSON
        return _flip(data, chance)
    return len(made).to_bytes(8, "little") + made + data[8 + length :] if header else made


def _tree(value: Any, chance: random.Random) -> Any:
    """A tree with one node replaced, removed, added or doubled."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        what = chance.random()
        if what < 0.7:
            return value | {key: _tree(value[key], chance)}
        if what < 0.8:
            return {k: v for k, v in value.items() if k != key}
        return value | {chance.choice(("a", "end", "format", "", "x" * 600)): chance.choice(_VALUES), key: value[key]}
    if isinstance(value, list) and value and chance.random() < 0.8:
        index = chance.randrange(len(value))
        what = chance.random()
        if what < 0.7:
            return [*value[:index], _tree(value[index], chance), *value[index + 1 :]]
        return value * chance.choice((0, 2, 100)) if what < 0.85 else [*value, chance.choice(_VALUES)]
    if isinstance(value, int) and not isinstance(value, bool) and chance.random() < 0.5:
        return value + chance.choice((-1, 1, -(2**31), 2**31, 2**16))
    return chance.choice(_VALUES)
