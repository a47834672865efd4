# SPDX-License-Identifier: Apache-2.0
"""Transfers of large objects as state machines: no I/O and no clock; `now` is in seconds of any steady clock.

A broker's acknowledgement is not a delivery receipt (a full queue drops messages after acknowledging them), so the
receiver itself says what it has. Everything is idempotent by (transfer, index): lost, repeated and reordered messages
only cost time.

    Sender:    offer ──> grant ──> chunks, at most a window unacknowledged <──> acks ──> commit
    Receiver:  offer ──> grant, store chunks, ack ──> verify (fsync, SHA-256, ledger) ──> commit
    Gather:    broadcast chunks in any order; what stays away is asked for again, one chunk first, then up to a window
        at a time
"""

from __future__ import annotations

import random
import zlib
from collections import deque
from dataclasses import dataclass

from fedcore.fields.manifest import Manifest
from fedcore.wire.bitmap import Bitmap
from fedcore.wire.messages import Ack, Chunk, Commit, Grant, Missing, Offer, Refuse

__all__ = [
    "Action",
    "Done",
    "Gather",
    "Receiver",
    "Refused",
    "Send",
    "SendChunk",
    "Sender",
    "Store",
    "Verify",
    "chunk_is_whole",
]

_RESEND_SECONDS = 2.0
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


Action = Send | SendChunk | Store | Verify | Done | Refused


def chunk_is_whole(chunk: Chunk, manifest: Manifest) -> bool:
    """Whether a chunk is one of the object's, with the right length and CRC."""
    if not 0 <= chunk.index < manifest.chunks:
        return False
    expected = min(manifest.chunk_bytes, manifest.size_bytes - chunk.index * manifest.chunk_bytes)
    return len(chunk.data) == expected and zlib.crc32(chunk.data) == chunk.crc32


class _Timer:
    """Due after a pause that doubles without progress, and with it is twice what the last step took: slow links are
    slow, not broken."""

    def __init__(self, pause_seconds: float) -> None:
        self._shortest = pause_seconds
        self._longest = max(pause_seconds, _LONGEST_RESEND_SECONDS)
        self._pause = pause_seconds
        self._progress_at = 0.0
        self.due_at = float("-inf")

    def restart(self, now: float) -> None:
        self._wait(self._shortest, now)
        self._progress_at = now

    def progress(self, now: float) -> None:
        self._wait(2 * (now - self._progress_at), now)
        self._progress_at = now

    def answered(self, asked_at: float, now: float) -> None:
        """What was asked has its answer: what comes next is given twice as long."""
        self._wait(2 * (now - asked_at), now)
        self._progress_at = now

    def back_off(self, now: float) -> None:
        self._wait(2 * self._pause, now)

    def _wait(self, pause: float, now: float) -> None:
        self._pause = min(max(pause, self._shortest), self._longest)
        self.due_at = now + self._pause


class Sender:
    """One object on its way up. Call `tick` at least once a second."""

    def __init__(self, transfer: str, manifest: Manifest, *, resend_seconds: float = _RESEND_SECONDS) -> None:
        self.transfer = transfer
        self.manifest = manifest
        self._acked = Bitmap(manifest.chunks)
        self._in_flight: dict[int, None] = {}
        self._doubtful: set[int] = set()
        self._window = 0
        self._timer = _Timer(resend_seconds)
        self._offered_at: float | None = None
        """When the first offer went out that has no answer yet."""
        self.finished = False

    @property
    def unacknowledged(self) -> int:
        """Chunks sent and not yet acknowledged; never more than the granted window."""
        return len(self._in_flight)

    def handle(self, message: Grant | Ack | Commit | Refuse, now: float) -> list[Action]:
        """Take a message about this transfer."""
        if self.finished or message.transfer != self.transfer:
            return []
        match message:
            case Commit():
                self.finished = True
                return [Done()]
            case Refuse(_, reason):
                self.finished = True
                return [Refused(reason)]
            case Grant(_, window, have):
                # A grant is the receiver's truth: after its restart it may have less than it once acknowledged.
                self._window = max(1, window)
                self._acked = Bitmap(self.manifest.chunks, have)
                # Links keep order: what was sent before the offer that this answers is there or lost, later chunks are
                # on their way.
                for index in self._doubtful:
                    self._in_flight.pop(index, None)
                self._doubtful.clear()
                # A window that shrank leaves the last ones for later.
                self._in_flight = dict.fromkeys(list(self._in_flight)[: self._window])
                # An answer to an older offer says nothing of how long this link takes.
                if self._offered_at is not None:
                    self._timer.answered(self._offered_at, now)
                    self._offered_at = None
            case Ack(_, have):
                if self._acked.update(have):
                    self._timer.progress(now)
        return self._fill()

    def tick(self, now: float) -> list[Action]:
        """Offer again when there is no answer: the grant tells what is missing. Chunks sent again on suspicion would
        fill a slow link."""
        if self.finished or now < self._timer.due_at:
            return []
        self._timer.back_off(now)
        if self._offered_at is None:
            self._offered_at = now
        if not self._doubtful:
            self._doubtful = set(self._in_flight)
        return [Send(Offer(self.transfer, self.manifest))]

    def link_lost(self) -> None:
        """The connection was cut: offer again at the next tick."""
        self._window = 0
        self._in_flight.clear()
        self._doubtful.clear()
        self._offered_at = None
        self._timer.due_at = float("-inf")

    def _fill(self) -> list[Action]:
        for index in [i for i in self._in_flight if i in self._acked]:
            del self._in_flight[index]
        out: list[Action] = []
        room = self._window - len(self._in_flight)
        if room > 0:
            for index in self._acked.missing():
                if index in self._in_flight:
                    continue
                if len(out) == room:
                    break
                self._in_flight[index] = None
                out.append(SendChunk(index))
        return out


class Receiver:
    """One object on its way in, at the coordinator.

    Args:
        transfer: Its id.
        manifest: From the offer.
        have: Bitmap of chunks that an earlier attempt stored.
        window: Chunks that the sender may have under way.
    """

    def __init__(self, transfer: str, manifest: Manifest, have: bytes = b"", *, window: int = 8) -> None:
        self.transfer = transfer
        self.manifest = manifest
        self.bitmap = Bitmap(manifest.chunks, have)
        self._window = window
        self._verifying = False
        self.committed = False

    def handle(self, message: Offer | Chunk, now: float) -> list[Action]:
        """Take an offer (also a repeated one) or a chunk of this transfer."""
        del now
        if message.transfer != self.transfer:
            return []
        if self.committed:
            return [Send(Commit(self.transfer))]
        if self._verifying:
            return []
        if isinstance(message, Offer):
            grant = Send(Grant(self.transfer, self._window, self.bitmap.tobytes()))
            return self._verify() if self.bitmap.full else [grant]
        if not chunk_is_whole(message, self.manifest):
            return []
        if not self.bitmap.add(message.index):
            # Its acknowledgement was lost.
            return [Send(Ack(self.transfer, self.bitmap.tobytes()))]
        out: list[Action] = [Store(message.index, message.data), Send(Ack(self.transfer, self.bitmap.tobytes()))]
        return out + self._verify() if self.bitmap.full else out

    def verified(self, whole: bool) -> list[Action]:
        """The shell's answer to `Verify`: committed, or everything once more."""
        self._verifying = False
        if whole:
            self.committed = True
            return [Send(Commit(self.transfer))]
        self.bitmap = Bitmap(self.manifest.chunks)
        return [Send(Grant(self.transfer, self._window, self.bitmap.tobytes()))]

    def _verify(self) -> list[Action]:
        self._verifying = True
        return [Verify()]


class Gather:
    """One published object on its way to a node: mostly broadcast, the rest asked for.

    Args:
        manifest: From the plan.
        have: Bitmap of chunks that an earlier attempt stored.
        now: When it starts.
        jitter: Spreads the requests of many nodes over time.
        patience_seconds: How long without progress before asking.
        window: Most chunks asked for at a time.
    """

    def __init__(
        self,
        manifest: Manifest,
        have: bytes,
        now: float,
        jitter: random.Random,
        *,
        patience_seconds: float = 1.0,
        window: int = 8,
    ) -> None:
        self.manifest = manifest
        self.bitmap = Bitmap(manifest.chunks, have)
        self._window = window
        self._timer = _Timer(patience_seconds * jitter.uniform(1.0, 2.0))
        self._timer.restart(now)
        self._asked: set[int] = set()
        self._asking = 1
        self._repairing = False
        self._verifying = False
        self._interrupted = False
        self.finished = False

    def link_lost(self) -> None:
        """The link was away: for how long says nothing of how slow it is, and what was asked for may not come."""
        self._interrupted = True

    def _resume(self, now: float) -> None:
        if self._interrupted:
            self._interrupted = False
            self._timer.restart(now)

    def handle(self, chunk: Chunk, now: float) -> list[Action]:
        """Take a chunk, from whichever topic; its transfer id is the object's SHA-256."""
        self._resume(now)
        if (
            self.finished
            or self._verifying
            or chunk.transfer != self.manifest.sha256
            or not chunk_is_whole(chunk, self.manifest)
        ):
            return []
        if not self.bitmap.add(chunk.index):
            return []
        self._timer.progress(now)
        if chunk.index not in self._asked:
            # The broadcast goes on: wait for it.
            self._repairing = False
        self._asked.discard(chunk.index)
        out: list[Action] = [Store(chunk.index, chunk.data)]
        if self.bitmap.full:
            self._verifying = True
            return [*out, Verify()]
        if self._asked or not self._repairing:
            return out
        self._asking = min(2 * self._asking, self._window)
        return [*out, *self._ask()]

    def tick(self, now: float) -> list[Action]:
        """Ask for what did not come."""
        self._resume(now)
        if self.finished or self._verifying:
            return []
        if self.bitmap.full:
            self._verifying = True
            return [Verify()]
        if now < self._timer.due_at:
            return []
        self._timer.back_off(now)
        self._repairing, self._asking = True, 1
        return self._ask()

    def verified(self, whole: bool) -> list[Action]:
        """The shell's answer to `Verify`: done, or everything once more."""
        self._verifying = False
        if whole:
            self.finished = True
            return [Done()]
        self.bitmap = Bitmap(self.manifest.chunks)
        return self._ask()

    def _ask(self) -> list[Action]:
        # From the end: the broadcast begins at the start, and what it is about to bring needs no repair.
        indices = tuple(deque(self.bitmap.missing(), maxlen=self._asking))
        self._asked = set(indices)
        return [Send(Missing(self.manifest.sha256, indices))]
