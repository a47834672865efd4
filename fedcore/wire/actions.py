# SPDX-License-Identifier: Apache-2.0
"""What the state machines of transfers have done, and by which clock they say it again."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from fedcore.fields.manifest import Manifest
from fedcore.wire.messages import Ack, Chunk, Commit, Grant, Missing, Offer

__all__ = [
    "Action",
    "Done",
    "Fetch",
    "Put",
    "Refused",
    "Send",
    "SendChunk",
    "Store",
    "Timer",
    "Verify",
    "chunk_is_whole",
]

_LONGEST_RESEND_SECONDS = 30.0


@dataclass(frozen=True)
class Send:
    """An action: send a message to the other side."""

    message: Offer | Grant | Ack | Commit | Missing


@dataclass(frozen=True)
class SendChunk:
    """Read chunk `index` from the file and send it."""

    index: int


@dataclass(frozen=True)
class Put:
    """Put the file under an address, and then call `put`; by HTTP, beside whoever drives the machine."""

    address: str


@dataclass(frozen=True)
class Fetch:
    """Have the object from the store, whole and verified."""


@dataclass(frozen=True)
class Store:
    """Write a chunk into the partial file."""

    index: int
    data: bytes


@dataclass(frozen=True)
class Verify:
    """All chunks are stored: check the SHA-256, flush to the disk, then call `verified`."""


@dataclass(frozen=True)
class Done:
    """The other side has it for good."""


@dataclass(frozen=True)
class Refused:
    """The other side does not want it."""

    reason: str


Action = Send | SendChunk | Put | Fetch | Store | Verify | Done | Refused


def chunk_is_whole(chunk: Chunk, manifest: Manifest) -> bool:
    """Whether a chunk is one of the object's, with the right length and CRC."""
    if not 0 <= chunk.index < manifest.chunks:
        return False
    expected = min(manifest.chunk_bytes, manifest.size_bytes - chunk.index * manifest.chunk_bytes)
    return len(chunk.data) == expected and zlib.crc32(chunk.data) == chunk.crc32


class Timer:
    """Due after a pause that doubles without progress, and with it is twice what the last step took: slow links are
    slow, not broken."""

    def __init__(self, pause_seconds: float) -> None:
        self._shortest = pause_seconds
        self._longest = max(pause_seconds, _LONGEST_RESEND_SECONDS)
        self._pause = pause_seconds
        self._progress_at = 0.0
        self.due_at = float("-inf")

    def restart(self, now: float) -> None:
        """Begin with the shortest pause."""
        self._wait(self._shortest, now)
        self._progress_at = now

    def progress(self, now: float) -> None:
        """There is some: the next step is given twice as long as this one took."""
        self._wait(2 * (now - self._progress_at), now)
        self._progress_at = now

    def answered(self, asked_at: float, now: float, least_seconds: float = 0.0) -> None:
        """What was asked has its answer: what comes next is given twice as long."""
        self._wait(max(least_seconds, 2 * (now - asked_at)), now)
        self._progress_at = now

    def back_off(self, now: float) -> None:
        """There is none: wait twice as long."""
        self._wait(2 * self._pause, now)

    def _wait(self, pause: float, now: float) -> None:
        self._pause = min(max(pause, self._shortest), self._longest)
        self.due_at = now + self._pause
