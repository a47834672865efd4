# SPDX-License-Identifier: Apache-2.0
"""Transfers of updates as state machines: no I/O and no clock; `now` is in seconds of any steady clock
(`fedcore.wire.gather` has what goes down).

A broker's acknowledgement is not a delivery receipt (a full queue drops messages after acknowledging them), so the
receiver itself says what it has. Everything is idempotent by (transfer, index): lost, repeated and reordered messages
only cost time.

    Sender:    offer ──> grant ──> chunks, at most a window unacknowledged <──> acks ──> commit
    Receiver:  offer ──> grant, store chunks, ack ──> verify (fsync, SHA-256, ledger) ──> commit

An update may also go through a store of objects: then the broker brings words alone.

    Sender:         offer ──> grant with an address ──> put ──> offer: it lies there ──> commit
    StoreReceiver:  offer ──> grant with an address; it lies there ──> fetch, verify ──> commit

Whatever goes wrong on that way ends in an offer of chunks or a grant of chunks, and a sender that has come to chunks
stays with them. So nothing is put twice, and each step may be lost, repeated or late.
"""

from __future__ import annotations

from fedcore.fields.manifest import Manifest
from fedcore.wire.actions import (
    Action,
    Done,
    Fetch,
    Put,
    Refused,
    Send,
    SendChunk,
    Store,
    Timer,
    Verify,
    chunk_is_whole,
)
from fedcore.wire.bitmap import Bitmap
from fedcore.wire.messages import Ack, Chunk, Commit, Grant, Offer, Refuse, Way

__all__ = ["Receiver", "Sender", "StoreReceiver"]

_RESEND_SECONDS = 2.0
# While an object is put, offers say that it is on its way: a third of the time for which that is believed.
_PUTTING_SECONDS = 5.0


class Sender:
    """One object on its way up. Call `tick` at least once a second.

    Args:
        transfer: Its id.
        manifest: What it is.
        resend_seconds: Between two offers at least.
        by_store: Ask for a store first.
    """

    def __init__(
        self,
        transfer: str,
        manifest: Manifest,
        *,
        resend_seconds: float = _RESEND_SECONDS,
        by_store: bool = False,
    ) -> None:
        self.transfer = transfer
        self._way: Way = "store" if by_store else "chunks"
        self._putting = False
        self.manifest = manifest
        self._acked = Bitmap(manifest.chunks)
        self._in_flight: dict[int, None] = {}
        self._doubtful: set[int] = set()
        self._window = 0
        self._timer = Timer(resend_seconds)
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
            case Grant() if self._putting:
                # Whatever it says: the answer to what is being done.
                self._answered(now, _PUTTING_SECONDS)
                return []
            case Grant(address=address) if address:
                if self._way != "store":
                    # Late: it answers what was offered before.
                    return []
                self._putting = True
                self._answered(now, _PUTTING_SECONDS)
                return [Put(address)]
            case Grant(_, window, have):
                self._way = "chunks"
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
                self._answered(now)
            case Ack(_, have):
                if self._acked.update(have):
                    self._timer.progress(now)
        return self._fill()

    def put(self, whole: bool, now: float) -> list[Action]:
        """The shell's answer to `Put`: the store has taken it; or it is offered in chunks, and waits for its turn: who
        was granted a store has no room in the broker."""
        if self.finished or not self._putting:
            return []
        self._putting, self._way = False, "stored" if whole else "chunks"
        self._timer.restart(now)
        self._offered_at = now
        return [self._offer()]

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
        return [self._offer()]

    def link_lost(self) -> None:
        """The connection was cut: offer again at the next tick."""
        self._window = 0
        self._in_flight.clear()
        self._doubtful.clear()
        self._offered_at = None
        self._timer.due_at = float("-inf")

    def _answered(self, now: float, least_seconds: float = 0.0) -> None:
        # An answer to an older offer says nothing of how long this link takes.
        if self._offered_at is not None:
            self._timer.answered(self._offered_at, now, least_seconds)
            self._offered_at = None

    def _offer(self) -> Send:
        return Send(Offer(self.transfer, self.manifest, self._way))

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


class StoreReceiver:
    """One object on its way in through a store, at the coordinator, until it is there or is to come in chunks.

    Args:
        transfer: Its id.
        manifest: From the offer.
    """

    def __init__(self, transfer: str, manifest: Manifest) -> None:
        self.transfer = transfer
        self.manifest = manifest
        self.fetching = False

    def handle(self, offer: Offer, address: str) -> list[Action]:
        """Take an offer (also a repeated one) of this transfer, by way of a store.

        Args:
            offer: What was said.
            address: Where it is to be put.
        """
        if self.fetching:
            # The answer is a commit, or a grant of chunks; also for a sender that has begun again and would put it
            # once more.
            return []
        if offer.way == "stored":
            self.fetching = True
            return [Fetch()]
        return [Send(Grant(self.transfer, 1, b"", address))]

    def committed(self) -> Commit:
        """The shell's answer to `Fetch`, where the object is here and verified; else a `Receiver` takes the place of
        this machine."""
        return Commit(self.transfer)
