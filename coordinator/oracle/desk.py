# SPDX-License-Identifier: Apache-2.0
"""What the oracle does with what devices say: events in, actions out, no I/O and no clock.

A device has few items waiting here, and all together not many: what does not fit is refused in words, and the device
answers by itself. What came too late, or was heard before, is dropped."""

from __future__ import annotations

import struct
from collections import Counter, deque
from dataclasses import dataclass, field

from coordinator.oracle.thresholds import mean_thresholds
from fedcore.wire.answers import AnswerBody, Answered, AnswerEnvelope, Ask, Learned, NotAnswered, Resolved, Thresholds
from fedcore.worker.parts import HiddenStates

__all__ = ["Desk", "Limits", "Outgoing", "Shape", "Work"]

_MOST_NAMES = 20_000
_LARGEST_SCALE = 1e4


@dataclass(frozen=True)
class Shape:
    """What the model takes.

    Attributes:
        front: Of the devices' part that it follows.
        width: Numbers in a hidden state.
        tokens: Of a text, at most.
    """

    front: str
    width: int
    tokens: int


@dataclass(frozen=True)
class Limits:
    """What may wait.

    Attributes:
        waiting: Items of all devices together.
        of_one: Of one device.
        quorum: Devices whose thresholds make the next ones.
    """

    waiting: int = 256
    of_one: int = 32
    quorum: int = 2


@dataclass(frozen=True)
class Outgoing:
    """A message to a device, to a cluster, or (retained) to all.

    Attributes:
        body: What.
        node: To which device; empty for the others.
        cluster: To which cluster.
    """

    body: AnswerBody
    node: str = ""
    cluster: int | None = None


@dataclass(frozen=True)
class Work:
    """An item that waits for the model.

    Attributes:
        node: Who asked.
        ask: What.
        expires_at: After it nobody waits, Unix seconds; None: it was not said.
    """

    node: str
    ask: Ask
    expires_at: float | None

    @property
    def hidden(self) -> HiddenStates:
        """For the model."""
        return HiddenStates(self.ask.tokens, self.ask.numbers, self.ask.scales)


@dataclass
class Desk:
    """Who asked what, and what comes of it.

    Attributes:
        shape: What the model takes.
        round: Of thresholds, the open one.
        units: Thresholds by cluster, in units of 2**-32.
        limits: What may wait.
        dropped: Messages that changed nothing, by why.
        answered: Items that were answered.
    """

    shape: Shape
    round: int
    units: tuple[int, ...]
    limits: Limits = Limits()
    dropped: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    _waiting: deque[Work] = field(default_factory=deque)
    _of_node: Counter[str] = field(default_factory=Counter)
    _sequences: dict[str, int] = field(default_factory=dict)
    _said: dict[str, Learned] = field(default_factory=dict)

    def thresholds(self) -> Outgoing:
        """What is published of the open round."""
        return Outgoing(Thresholds(self.round, self.shape.front, self.units))

    def heard(self, envelope: AnswerEnvelope, now: float) -> list[Outgoing]:
        """A device says something; its signature is right.

        Args:
            envelope: What.
            now: Unix seconds.
        """
        node = envelope.node
        if node not in self._sequences and len(self._sequences) >= _MOST_NAMES:
            return self._drop("too many devices")
        if envelope.sequence <= self._sequences.get(node, -1):
            return self._drop("played again")
        self._sequences[node] = envelope.sequence
        if envelope.expires_at is not None and envelope.expires_at <= now:
            return self._drop("too late")
        match envelope.body:
            case Ask():
                return self._asked(node, envelope.body, envelope.expires_at)
            case Learned():
                return self._learned(node, envelope.body)
        return self._drop("not for an oracle")

    def next_work(self, most: int, now: float) -> list[Work]:
        """The oldest items for the model, in their order; those that nobody waits for any more are dropped."""
        found: list[Work] = []
        while self._waiting and len(found) < most:
            work = self._waiting.popleft()
            self._of_node[work.node] -= 1
            if work.expires_at is not None and work.expires_at <= now:
                self._drop("too late")
            else:
                found.append(work)
        return found

    def worked(self, work: Work, scores: tuple[float, ...], embedding: bytes) -> list[Outgoing]:
        """The model has said something: to the device that asked, and to its cluster."""
        self.answered += 1
        ask = work.ask
        return [
            Outgoing(Answered(ask.item, scores), work.node),
            Outgoing(Resolved(self.shape.front, embedding, scores), cluster=ask.cluster),
        ]

    def failed(self, work: Work, reason: str) -> list[Outgoing]:
        """The model could say nothing."""
        return [Outgoing(NotAnswered(work.ask.item, reason), work.node)]

    def _asked(self, node: str, ask: Ask, expires_at: float | None) -> list[Outgoing]:
        if (why := self._unwanted(node, ask)) is not None:
            self._drop(why)
            return [Outgoing(NotAnswered(ask.item, why), node)]
        self._waiting.append(Work(node, ask, expires_at))
        self._of_node[node] += 1
        return []

    def _unwanted(self, node: str, ask: Ask) -> str | None:
        shape = self.shape
        if ask.front != shape.front:
            return "the device's blocks are not those that this model follows"
        if ask.tokens > shape.tokens:
            return f"a text has at most {shape.tokens} tokens"
        if len(ask.numbers) != ask.tokens * shape.width or len(ask.scales) != 4 * ask.tokens:
            return f"hidden states of {shape.width} numbers a token are expected"
        # Looked at here: in the model one such item would fail those of other devices beside it.
        if not all(0 < scale < _LARGEST_SCALE for scale in struct.unpack(f"<{ask.tokens}f", ask.scales)):
            return "a token's scale is no positive number"
        if ask.cluster >= len(self.units):
            return f"there are {len(self.units)} clusters"
        if self._of_node[node] >= self.limits.of_one:
            return "too many of this device wait"
        return "too many wait" if len(self._waiting) >= self.limits.waiting else None

    def _learned(self, node: str, said: Learned) -> list[Outgoing]:
        if said.round != self.round or said.cluster >= len(self.units):
            return self._drop("thresholds of another round or cluster")
        # What a device says last counts, once.
        self._said[node] = said
        if len(self._said) < self.limits.quorum:
            return []
        self.units, self.round = mean_thresholds(self.units, self._said), self.round + 1
        self._said.clear()
        return [self.thresholds()]

    def _drop(self, why: str) -> list[Outgoing]:
        self.dropped[why] += 1
        return []
