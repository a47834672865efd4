# SPDX-License-Identifier: Apache-2.0
"""Types of message fields with their limits, each said once. What is outside is refused when a message is decoded.

Names from the wire become topics and file names, so they are letters, digits, `.`, `_` and `-` and begin with a letter
or digit: no path and no wildcard can be written with them. Floats are finite: a bound refuses NaN and infinity too."""

from __future__ import annotations

from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta

__all__ = [
    "MAX_CHUNKS",
    "MAX_CHUNK_BYTES",
    "MAX_OBJECT_BYTES",
    "Address",
    "Addressee",
    "Bytes",
    "Checksum",
    "ChunkBytes",
    "ChunkData",
    "ChunkIndex",
    "Count",
    "Crc32",
    "FileName",
    "HaveBits",
    "Name",
    "Number",
    "ObjectBytes",
    "OptionalSha256",
    "Positive",
    "RoundNumber",
    "RunId",
    "Sha256",
    "TransferId",
    "UnixSeconds",
    "Window",
    "clean_text",
    "clean_texts",
]

MAX_CHUNK_BYTES: Final = 1_000_000
MAX_CHUNKS: Final = 2**20
MAX_OBJECT_BYTES: Final = 2**36
_MAX_TEXT: Final = 1000

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
"""A run or a node."""
Addressee = Annotated[str, Meta(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?\Z")]
"""A node, or empty for all."""
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}\Z")]
TransferId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
OptionalSha256 = Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")]
RunId = Annotated[str, Meta(pattern=r"^([0-9a-f]{32})?\Z")]
"""Tells a run from every other of its name; empty where nobody has made one."""
Address = Annotated[str, Meta(max_length=2048)]
"""Of HTTP; whoever would follow it looks at it first (`fedcore.web.origins`)."""
Checksum = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]

RoundNumber = Annotated[int, Meta(ge=0, le=2**31 - 1)]
"""A round, a version, a generation."""
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Bytes = Annotated[int, Meta(ge=0, le=2**60)]
Number = Annotated[float, Meta(ge=-1e30, le=1e30)]
UnixSeconds = Annotated[float, Meta(ge=0, le=1e15)]

ObjectBytes = Annotated[int, Meta(ge=0, le=MAX_OBJECT_BYTES)]
ChunkBytes = Annotated[int, Meta(ge=1, le=MAX_CHUNK_BYTES)]
ChunkIndex = Annotated[int, Meta(ge=0, lt=MAX_CHUNKS)]
ChunkData = Annotated[bytes, Meta(max_length=MAX_CHUNK_BYTES)]
HaveBits = Annotated[bytes, Meta(max_length=MAX_CHUNKS // 8)]
Window = Annotated[int, Meta(ge=1, le=1024)]
Crc32 = Annotated[int, Meta(ge=0, lt=2**32)]


def clean_text(text: str) -> str:
    """Words for a person from elsewhere, as one short line: nothing that moves a terminal's cursor, nothing endless.

    Example:
        >>> clean_text("no room" + chr(27) + "[2J" + chr(10) + "left")
        'no room?[2J left'
    """
    line = " ".join(text[: 4 * _MAX_TEXT].split())
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= _MAX_TEXT else f"{line[: _MAX_TEXT - 3]}..."


S = TypeVar("S", bound=msgspec.Struct)


def clean_texts(message: S, *names: str) -> None:
    """Clean a message's texts where it is made: so no reason, however long, makes a message that its receiver
    refuses."""
    for name in names:
        text = getattr(message, name)
        if (cleaned := clean_text(text)) != text:
            msgspec.structs.force_setattr(message, name, cleaned)
