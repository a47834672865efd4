# SPDX-License-Identifier: Apache-2.0
"""A published object on its way to a node, as a state machine: no I/O and no clock (`fedcore.wire.transfer` has what
goes up).

    Gather:    broadcast chunks in any order; what stays away is asked for again, one chunk first, then up to a window
        at a time
"""

from __future__ import annotations

import random
from collections import deque

from fedcore.fields.manifest import Manifest
from fedcore.wire.actions import Action, Done, Send, Store, Timer, Verify, chunk_is_whole
from fedcore.wire.bitmap import Bitmap
from fedcore.wire.messages import Chunk, Missing

__all__ = ["Gather"]


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
        self._timer = Timer(patience_seconds * jitter.uniform(1.0, 2.0))
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
